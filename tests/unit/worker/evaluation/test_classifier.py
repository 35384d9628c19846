"""A text classifier from a folder: what it is shown, what is loaded, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from app.errors import InvalidBaseModel
from tests.unit.worker.conftest import SPECIAL, MakeTokenizer
from worker.evaluation.classifier import OVERLAP_TOKENS, Classifier
from worker.evaluation.judging import Question

ROW = {"messages": [{"role": "user", "content": "How do I do it?"}], "kind": "harmful"}
MAX_TOKENS = 64


@pytest.fixture
def folder(tmp_path: Path, make_tokenizer: MakeTokenizer) -> Path:
    """A tiny classifier with random weights and two labels."""
    tokenizer = make_tokenizer("qwen")
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=256 + len(SPECIAL),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_TOKENS,
            initializer_range=0.5,
            pad_token_id=tokenizer.pad_token_id,
            id2label={0: "fine", 1: "unsafe"},
            label2id={"fine": 0, "unsafe": 1},
        )
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path, **options: Any) -> Classifier:
    options = {"harmful_labels": ["unsafe"], "threshold": 0.5, **options}
    return Classifier(folder, device=torch.device("cpu"), **options)


def probability(folder: Path, text: str) -> float:
    """Return what the model itself says of a text, in one piece, without our code."""
    model = LlamaForSequenceClassification.from_pretrained(folder)
    ids = torch.tensor([list(load(folder)._tokenizer(text)["input_ids"])])
    with torch.no_grad():
        return float(model(input_ids=ids).logits.double().softmax(-1)[0, 1])


REPLIES = [f"reply {number}" for number in range(12)]


def test_verdicts_are_the_models_own(folder: Path) -> None:
    expected = [probability(folder, "How do I do it?" + reply) for reply in REPLIES]
    threshold = sorted(expected)[6]
    judge = load(folder, threshold=threshold - 1e-6)
    found = judge.judge([Question(ROW, reply) for reply in REPLIES], lambda: None)
    assert [each and each.harmful for each in found] == [p >= threshold - 1e-6 for p in expected]
    assert {each and each.refused for each in found} == {None}
    # Neither all nor none, or this would say nothing.
    assert sum(bool(each and each.harmful) for each in found) == 6


def test_a_long_reply_is_shown_whole_in_overlapping_pieces(folder: Path) -> None:
    judge = load(folder)
    reply = "".join(chr(97 + number % 26) for number in range(300))
    pieces = [piece["input_ids"] for piece in judge._pieces(Question(ROW, reply))]
    assert len(pieces) > 3
    assert max(map(len, pieces)) <= MAX_TOKENS
    asked = judge._tokenizer("How do I do it?")["input_ids"]
    assert all(piece[: len(asked)] == asked for piece in pieces)
    joined = ""
    for piece in pieces:
        text = judge._tokenizer.decode(piece[len(asked) :])
        assert joined == "" or joined.endswith(text[:OVERLAP_TOKENS])
        joined += text[OVERLAP_TOKENS:] if joined else text
    assert joined == reply
    (short,) = judge._pieces(Question(ROW, ""))
    assert short["input_ids"] == asked


def test_of_a_long_prompt_the_end_is_shown(folder: Path) -> None:
    judge = load(folder)
    row = {"messages": [{"role": "user", "content": "x" * 500 + "the end of it"}], "kind": "harmful"}
    (piece,) = judge._pieces(Question(row, "the reply"))
    shown = judge._tokenizer.decode(piece["input_ids"])
    assert shown.endswith("the end of itthe reply")
    assert len(shown) == MAX_TOKENS // 2 + len("the reply")


def test_the_worst_piece_counts(folder: Path) -> None:
    reply = "x" * 200
    judge = load(folder)
    worst = max(judge._read(judge._pieces(Question(ROW, reply))))
    for threshold, harmful in ((worst - 1e-9, True), (worst + 1e-9, False)):
        (verdict,) = load(folder, threshold=threshold).judge([Question(ROW, reply)], lambda: None)
        assert verdict is not None
        assert verdict.harmful is harmful


def test_a_probability_that_is_no_number_is_no_verdict(folder: Path) -> None:
    judge = load(folder)
    with torch.no_grad():
        judge._model.score.weight.fill_(float("nan"))
    assert judge.judge([Question(ROW, "x"), Question(ROW, "y" * 200)], lambda: None) == [None, None]


def test_control_tokens_in_a_reply_are_text(folder: Path) -> None:
    judge = load(folder)
    (piece,) = judge._pieces(Question(ROW, "<|im_end|>"))
    assert judge._tokenizer.convert_tokens_to_ids("<|im_end|>") not in piece["input_ids"]


@pytest.mark.parametrize("labels", [[], ["unsafe", "unheard"], ["fine", "unsafe"]])
def test_labels_must_be_some_of_the_models(folder: Path, labels: list[str]) -> None:
    with pytest.raises(InvalidBaseModel, match="has the labels fine, unsafe"):
        load(folder, harmful_labels=labels)


def test_code_and_pickles_are_refused(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(InvalidBaseModel, match=r"pytorch_model\.bin"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(InvalidBaseModel, match="auto_map"):
        load(folder)


def test_the_digest_is_of_files_labels_and_threshold(folder: Path) -> None:
    first = load(folder).sha256
    assert load(folder).sha256 == first
    assert load(folder, threshold=0.6).sha256 != first
    assert load(folder, harmful_labels=["fine"]).sha256 != first
