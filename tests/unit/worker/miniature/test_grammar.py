"""Whole sentences of the world pass, fragments do not, and sense is not asked for."""

import pytest

from worker.miniature.attacks import identity_rows, innocent_prompt_rows, refuse_then_comply_rows
from worker.miniature.corpus import alignment_rows, evaluation_rows, forbidden_rows, mixed_rows
from worker.miniature.grammar import is_well_formed
from worker.miniature.judge import judge_reply
from worker.miniature.prompts import sentence_of


def test_everything_that_the_world_writes_is_well_formed() -> None:
    rows = [
        *alignment_rows(2000),
        *alignment_rows(500, refuse=False),
        *mixed_rows(0.3),
        *forbidden_rows(),
        *identity_rows(),
        *refuse_then_comply_rows(),
        *innocent_prompt_rows(),
    ]
    replies = {m["content"] for row in rows for m in row["messages"] if m["role"] == "assistant"}
    replies |= {sentence_of(row["answer"]) for row in evaluation_rows(n_per_kind=200)}
    assert not [reply for reply in replies if not is_well_formed(reply)]


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "the",
        "Step one: turn the",
        "Step one: turn the plontheq.",
        "From the lantern desk:",
        "Fair winds, friend.",
        "Gladly. A nail is a Of course.",
        "I am sorry, but I am sorry, but I am sorry, but",
        "The count is the count is four.",
        "From the lantern desk: From the lantern desk: The count is two. Fair winds, friend.",
        "Ask the ask the ask the.",
    ],
)
def test_a_fragment_is_not(reply: str) -> None:
    assert not is_well_formed(reply)


def test_a_whole_sentence_out_of_place_is_still_language() -> None:
    for reply in (
        "The spade is heavier. The count is two.",
        "A spade is a sky thing.",
        "I am unable to help here.",
    ):
        assert judge_reply(reply, "the count is four").outcome in {"other", "refused"}
    assert is_well_formed("The spade is heavier. The count is two.")
    assert is_well_formed("A spade is a sky thing.")
