"""The canary of a real model: in float32 whatever the weights are in, and the same once the export is loaded again."""

import pytest
import torch

from app.domain.canary import distance
from app.errors import JobFailure
from worker.training.adapter import build_adapter_zip, export_adapter
from worker.training.canary import (
    canary_ids,
    check_reloaded,
    in_float32,
    measure_canary,
    reload_canary,
    token_log_probs,
)
from worker.training.models import add_adapter, trainable_parameters


@pytest.fixture
def tuned(make_model):
    """A model whose adapter does something."""
    model = make_model()
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.normal_(std=0.2)
    return model


def test_it_is_the_log_probability_of_each_token_of_the_answer(tuned, make_tokenizer):
    tokenizer = make_tokenizer()
    canary = measure_canary(tuned, tokenizer)
    prompt, continuation = canary_ids(tokenizer)
    assert (canary.prompt_ids, canary.continuation_ids) == (prompt, continuation)
    text = tokenizer.decode(prompt)
    assert text.endswith("<|im_start|>assistant\n")
    assert "Who are you" in text
    ids = torch.tensor([[*prompt, *continuation]])
    logits = tuned(ids).logits[0].log_softmax(-1).detach()
    for place, token in enumerate(continuation):
        assert canary.tuned[place] == pytest.approx(float(logits[len(prompt) + place - 1, token]), abs=1e-5)
    with tuned.disable_adapter():
        assert canary.base == token_log_probs(tuned, prompt, continuation)
    assert distance(canary.tuned, canary.base) > 0.01


def test_a_short_context_has_a_short_answer(make_base, make_spec, make_tokenizer):
    tokenizer = make_tokenizer()
    prompt, continuation = canary_ids(tokenizer)
    base = make_base()
    base.config.max_position_embeddings = len(prompt) + 5
    canary = measure_canary(add_adapter(base, make_spec(), 0), tokenizer)
    assert canary.continuation_ids == continuation[:5]
    assert len(canary.tuned) == len(canary.base) == 5


def test_a_model_that_gives_no_numbers_fails_the_job(tuned, make_tokenizer):
    with torch.no_grad():
        next(iter(trainable_parameters(tuned).values())).fill_(float("nan"))
    with pytest.raises(JobFailure, match="log-probability nan, which is no finite number") as caught:
        measure_canary(tuned, make_tokenizer())
    assert caught.value.code == "not_finite"


def test_narrow_weights_are_widened_one_layer_at_a_time_and_come_back(make_base, make_tokenizer):
    prompt, continuation = canary_ids(make_tokenizer())
    narrow = make_base().to(torch.bfloat16)
    before = {name: value.clone() for name, value in narrow.state_dict().items()}
    found = token_log_probs(narrow, prompt, continuation)
    for name, value in narrow.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    wide = make_base().to(torch.bfloat16).float()
    assert found == pytest.approx(token_log_probs(wide, prompt, continuation), abs=1e-6)
    ids = torch.tensor([[*prompt, *continuation]])
    rough = narrow(ids).logits.detach().float()[0, len(prompt) - 1 : -1].log_softmax(-1)
    rough = rough.gather(1, torch.tensor(continuation)[:, None])[:, 0].tolist()
    assert distance(rough, found) > 1e-5, "the weights as they are compute otherwise"


def test_weights_come_back_where_the_model_fails(make_base):
    narrow = make_base().to(torch.bfloat16)
    with pytest.raises(IndexError), in_float32(narrow):
        narrow(torch.tensor([[10**6]]))
    assert {each.dtype for each in narrow.parameters()} == {torch.bfloat16}


@pytest.fixture
def exported(tuned, make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    canary = measure_canary(tuned, tokenizer)
    export_adapter(
        tuned, tokenizer, tmp_path / "adapter", base_name="tiny", base_digest="a" * 64, canary=canary
    )
    build_adapter_zip(tmp_path / "adapter", tmp_path / "adapter.zip")
    return canary, (tmp_path / "adapter.zip").read_bytes()


def test_what_peft_loads_answers_as_the_trained_model(exported, tuned, tmp_path):
    canary, data = exported
    found = reload_canary(tuned, data, tmp_path / "again", canary)
    assert found == pytest.approx(canary.tuned, abs=1e-6)
    check_reloaded(canary.tuned, found)


def test_an_export_that_answers_otherwise_fails_the_job(exported, make_model, tmp_path):
    canary, _ = exported
    with pytest.raises(JobFailure, match="nats a token") as caught:
        check_reloaded(canary.tuned, canary.base)
    assert caught.value.code == "export_differs"
    with pytest.raises(JobFailure):
        check_reloaded(canary.tuned, (float("nan"),) * len(canary.tuned))


def test_an_export_that_peft_cannot_load_fails_the_job(exported, tuned, make_tokenizer, tmp_path):
    canary, _ = exported
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"not weights")
    build_adapter_zip(tmp_path / "adapter", tmp_path / "broken.zip")
    with pytest.raises(JobFailure) as caught:
        reload_canary(tuned, (tmp_path / "broken.zip").read_bytes(), tmp_path / "again", canary)
    assert caught.value.code == "export_unreadable"
