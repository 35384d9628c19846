"""How likely a model finds an answer, beside its own logits."""

from typing import Any

import pytest
import torch

from app.errors import JobFailure
from tests.unit.worker.conftest import MakeTokenizer
from worker.evaluation.answers import answer_losses, tokenize_answers

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "one"}], "answer": "a short one"},
    {"messages": [{"role": "user", "content": "and a longer question"}], "answer": "b"},
    {
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "what was said before"},
            {"role": "user", "content": "two"},
        ],
        "answer": "c" * 20,
    },
]


def test_losses_are_the_mean_over_the_answers_tokens(make_base: Any, make_tokenizer: MakeTokenizer) -> None:
    model, tokenizer = make_base(), make_tokenizer("qwen")
    rows = tokenize_answers(tokenizer, ROWS, places=range(3), max_tokens=512, param="suite")
    found = answer_losses(model, rows, lambda: None)
    for row, loss, source in zip(rows, found, ROWS, strict=True):
        answered = [token for token, bears in zip(row.input_ids, row.loss_mask, strict=True) if bears]
        # The answer with its end, and nothing of an earlier reply.
        assert tokenizer.decode(answered) == f"{source['answer']}<|im_end|>"
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            log_p = model(input_ids=ids).logits.double().log_softmax(-1)[0]
        chosen = [
            -log_p[place - 1, token] for place, token in enumerate(row.input_ids) if row.loss_mask[place]
        ]
        assert loss == pytest.approx(float(torch.stack(chosen).mean()), rel=1e-5)


def test_progress_is_heard_of(make_base: Any, make_tokenizer: MakeTokenizer) -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        raise StopError

    rows = tokenize_answers(make_tokenizer("qwen"), ROWS, places=range(3), max_tokens=512, param="suite")
    with pytest.raises(StopError):
        answer_losses(make_base(), rows, stop)


def test_an_answer_that_the_model_cannot_read_is_named_by_its_row(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("qwen")
    rows = [*ROWS, {**ROWS[0], "answer": "a" * 100}]
    (whole,) = tokenize_answers(tokenizer, rows, places=[3], max_tokens=512, param="suite")
    length = len(whole.input_ids)
    with pytest.raises(
        JobFailure, match=rf"row 3 \(line 4\): prompt and answer have {length} tokens"
    ) as caught:
        tokenize_answers(tokenizer, rows, places=[0, 3], max_tokens=length - 1, param="suite")
    assert (caught.value.code, caught.value.param) == ("invalid_prompt_file", "suite")
