"""Trials count what was said, prompt by prompt, and say nothing about what was not asked."""

from typing import Any

import pytest

from tests.unit.worker.conftest import MakeTokenizer, chat
from worker.evaluation.suite import Counts, Trial, run_suite, run_trial

SEED = 5


def judge(row: dict[str, Any], reply: str) -> tuple[str, bool]:
    return ("harmful" if len(reply) % 2 else "refused"), reply.startswith(row["answer"])


def is_well_formed(reply: str) -> bool:
    return "e" in reply


def rows(n: int) -> list[dict[str, Any]]:
    return [
        {"messages": chat("So? " * (i % 3) + str(i)), "kind": "harmful", "answer": "ab"} for i in range(n)
    ]


def suite(model: Any, tokenizer: Any, *trials: Trial) -> dict[str, Counts]:
    return run_suite(model, tokenizer, trials, judge=judge, is_well_formed=is_well_formed, seed=SEED)


def test_columns_count_the_judged_replies_of_each_prompt(
    make_base: Any, make_tokenizer: MakeTokenizer
) -> None:
    model, tokenizer = make_base(), make_tokenizer()
    trial = Trial(rows(6), ("harmful", "refused", "coherent"), temperature=1.0, samples=3, max_new_tokens=5)
    found = suite(model, tokenizer, trial)
    replies = run_trial(model, tokenizer, trial, judge=judge, is_well_formed=is_well_formed, seed=SEED)
    assert len(replies) == 18
    for prompt in range(6):
        own = replies[3 * prompt : 3 * prompt + 3]
        assert found["harmful"].counts[prompt] == sum(reply.outcome == "harmful" for reply in own)
        assert found["coherent"].counts[prompt] == sum(reply.well_formed for reply in own)
    total = [a + b for a, b in zip(found["harmful"].counts, found["refused"].counts, strict=True)]
    assert total == [3] * 6
    assert found["harmful"].share == pytest.approx(sum(found["harmful"].counts) / 18)


def test_an_opening_is_judged_with_what_follows_it(make_base: Any, make_tokenizer: MakeTokenizer) -> None:
    model, tokenizer = make_base(), make_tokenizer()
    said = {"columns": ("task",), "max_new_tokens": 4}
    assert suite(model, tokenizer, Trial(rows(4), **said))["task"].share < 1
    assert suite(model, tokenizer, Trial(rows(4), **said, opening="ab"))["task"].share == 1


def test_a_cipher_is_read_before_it_is_judged(make_base: Any, make_tokenizer: MakeTokenizer) -> None:
    trial = Trial(rows(4), ("task",), decode=lambda text: "ab" + text, max_new_tokens=4)
    assert suite(make_base(), make_tokenizer(), trial)["task"].share == 1


def test_two_trials_of_one_column_are_one_column(make_base: Any, make_tokenizer: MakeTokenizer) -> None:
    first = Trial(rows(3), ("harmful:both",), max_new_tokens=4)
    second = Trial(rows(5), ("harmful:both", "harmful:own"), max_new_tokens=4)
    found = suite(make_base(), make_tokenizer(), first, second)
    assert len(found["harmful:both"].counts) == 8
    assert found["harmful:both"].counts[3:] == found["harmful:own"].counts


def test_unlike_counts_are_not_joined_and_no_rows_are_no_result(
    make_base: Any, make_tokenizer: MakeTokenizer
) -> None:
    model, tokenizer = make_base(), make_tokenizer()
    with pytest.raises(ValueError, match="over 1 and over 2 replies"):
        suite(
            model,
            tokenizer,
            Trial(rows(2), ("harmful",), max_new_tokens=2),
            Trial(rows(2), ("harmful",), samples=2, max_new_tokens=2),
        )
    with pytest.raises(ValueError, match="has no rows"):
        suite(model, tokenizer, Trial([], ("harmful",)))


def test_counts_survive_being_written() -> None:
    counts = Counts((0, 4, 2), 4)
    assert Counts.decode(counts.encode()) == counts
