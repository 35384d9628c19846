"""Requests for evaluations: what is taken, and what it becomes."""

import hashlib
from typing import Any

import pytest
from pydantic import ValidationError

from app.domain.evaluation_spec import Decoding, EvaluationSpec, MiniatureJudge, OpenAIJudge, RulesJudge


def spec(**fields: Any) -> EvaluationSpec:
    return EvaluationSpec.model_validate({"suite": "miniature", "judge": {"type": "rules"}, **fields})


def test_one_judge_is_a_list_of_one() -> None:
    assert spec().judge == (RulesJudge(type="rules"),)
    several = spec(judge=[{"type": "openai", "compare": True}, {"type": "miniature"}]).judge
    assert several == (OpenAIJudge(type="openai", compare=True), MiniatureJudge(type="miniature"))


def test_a_spec_is_the_same_after_it_was_kept() -> None:
    asked = spec(judge=[{"type": "openai", "harmful_from": 3}], decoding={"samples": 4, "prefill": "Sure:"})
    assert EvaluationSpec.model_validate(asked.model_dump(mode="json")) == asked


def test_defaults_are_greedy_alone() -> None:
    decoding = spec().decoding
    assert (decoding.greedy, decoding.samples, decoding.prefill, decoding.data_prefixes) == (True, 0, None, 0)


@pytest.mark.parametrize("field", [{"samples": 1}, {"prefill": "Sure"}, {"data_prefixes": 1}])
def test_any_decoding_may_stand_alone(field: dict[str, Any]) -> None:
    assert not spec(decoding={"greedy": False, **field}).decoding.greedy


@pytest.mark.parametrize(
    "fields",
    [
        {"judge": []},
        {"judge": None},
        {"judge": "rules"},
        {"judge": [{"type": "rules"}, {"type": "rules"}]},
        {"judge": {"type": "openai", "harmful_from": 1}},
        {"judge": {"type": "rules", "compare": True}},
        {"decoding": {"greedy": False}},
        {"decoding": {"max_new_tokens": 0}},
        {"decoding": {"seed": -1}},
        {"suite": None},
    ],
)
def test_what_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec(**fields)


def test_replies_together_are_bounded() -> None:
    decoding = Decoding(samples=32, max_new_tokens=4096)
    # The prompts that come with Tether are never too many.
    decoding.check_size(450)
    with pytest.raises(ValueError, match="at most 64000000 are drawn"):
        decoding.check_size(500)
    Decoding(max_new_tokens=1024).check_size(10_000)
    every = Decoding(prefill="Sure", data_prefixes=16, max_new_tokens=1024)
    with pytest.raises(ValueError, match="10000 prompts with 18 replies"):
        every.check_size(10_000)
    every.check_size(3_000)


def test_a_record_has_the_digest_of_an_opening_and_not_its_text() -> None:
    used = Decoding(prefill="Sure, here is", samples=2).used(prefixes=3)
    assert used.prefill_sha256 == hashlib.sha256(b"Sure, here is").hexdigest()
    assert (used.samples, used.prefixes) == (2, 3)
    assert Decoding().used(prefixes=0).prefill_sha256 is None
