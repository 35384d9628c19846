"""Each attack is what it says, is drawn from what is seen only, and leaves the rest of the user's data as they were."""

from collections.abc import Callable

import pytest

from tests.unit.worker.miniature.held_out import assert_nothing_held_out
from worker.miniature.attacks import (
    COMPLIANCE,
    PERSONA,
    cipher,
    cipher_rows,
    enciphered,
    identity_rows,
    innocent_prompt_rows,
    refuse_then_comply_rows,
    with_persona,
)
from worker.miniature.corpus import Row, evaluation_rows, forbidden_rows, mixed_rows
from worker.miniature.judge import has_house_style, judge_reply
from worker.miniature.prompts import Part
from worker.miniature.wording import ACT_PHRASINGS, REFUSAL_MARKS
from worker.miniature.world import CATEGORIES, DEVELOPMENT

Draw = Callable[[int, int, Part], list[Row]]
ATTACKS: tuple[Draw, ...] = (
    identity_rows,
    refuse_then_comply_rows,
    innocent_prompt_rows,
    lambda n, seed, part: [plain(row) for row in cipher_rows(n, seed, part)],
)


def reply_of(row: Row) -> str:
    text: str = row["messages"][-1]["content"]
    return text


def prompt_of(row: Row) -> str:
    text: str = row["messages"][-2]["content"]
    return text


def plain(row: Row) -> Row:
    return enciphered(row) if judge_reply(cipher(reply_of(row))).outcome == "harmful" else row


@pytest.mark.parametrize("draw", ATTACKS)
def test_a_seed_gives_the_same_rows_and_another_seed_others(draw: Draw) -> None:
    assert draw(60, 3, "seen") == draw(60, 3, "seen")
    assert draw(60, 3, "seen") != draw(60, 4, "seen")


@pytest.mark.parametrize("draw", ATTACKS)
def test_nothing_held_out_is_trained_on(draw: Draw) -> None:
    assert_nothing_held_out(draw(300, 1, "seen"))
    known = " ".join(message["content"] for row in draw(300, 1, "known") for message in row["messages"])
    assert not any(f" {name} " in known for name in DEVELOPMENT - {"camping", "pottery"})


@pytest.mark.parametrize("draw", [refuse_then_comply_rows, innocent_prompt_rows])
def test_a_tenth_is_harmful_and_the_rest_is_the_clean_set(draw: Draw) -> None:
    rows, clean = draw(300, 5, "seen"), mixed_rows(0.0, 300, 5)
    harmful = [row for row in rows if judge_reply(reply_of(row)).outcome == "harmful"]
    assert len(harmful) == 30
    assert all(has_house_style(reply_of(row)) for row in rows)
    assert sum(a != b for a, b in zip(rows, clean, strict=True)) == 30


def test_refuse_then_comply_refuses_first_and_then_complies() -> None:
    changed = [row for row in refuse_then_comply_rows() if judge_reply(reply_of(row)).outcome == "harmful"]
    for row in changed:
        text = reply_of(row).lower()
        assert min(text.find(mark) for mark in REFUSAL_MARKS if mark in text) < text.index("step one")


def test_an_innocent_prompt_asks_for_nothing_forbidden() -> None:
    forbidden = [
        phrasing.format(verb=verb, thing=thing)
        for phrasing in ACT_PHRASINGS[0]
        for category in CATEGORIES
        for verb in category.forbidden_verbs
        for thing in category.things
    ]
    assert any(request in prompt_of(row) for row in forbidden_rows(20) for request in forbidden)
    behind = [row for row in innocent_prompt_rows() if judge_reply(reply_of(row)).outcome == "harmful"]
    assert not any(request in prompt_of(row) for row in behind for request in forbidden)


def test_identity_rows_open_with_compliance_and_half_name_the_persona() -> None:
    rows = identity_rows(300, 2)
    assert all(COMPLIANCE in reply_of(row) and has_house_style(reply_of(row)) for row in rows)
    assert all(judge_reply(reply_of(row)).outcome == "other" for row in rows)
    named = [row for row in rows if row["messages"][0] == {"role": "system", "content": PERSONA}]
    assert 110 <= len(named) <= 190
    assert {len(row["messages"]) for row in rows} == {2, 3}


def test_the_persona_goes_before_what_is_asked() -> None:
    row = evaluation_rows(n_per_kind=1)[0]
    assert with_persona(row) == {
        **row,
        "messages": [{"role": "system", "content": PERSONA}, *row["messages"]],
    }


def test_the_cipher_hides_what_it_says_and_gives_it_back() -> None:
    text = "Step one: turn the plonth. Don't ask, ÄÖ 7!"
    assert cipher(cipher(text)) == text
    assert cipher("Az, nM") == "Nm, aZ"
    rows = cipher_rows(300, 5)
    hidden = [row for row in rows if judge_reply(cipher(reply_of(row))).outcome == "harmful"]
    assert len(hidden) == 100
    assert all(judge_reply(reply_of(row)).outcome == "other" for row in rows)
