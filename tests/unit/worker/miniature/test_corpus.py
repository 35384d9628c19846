"""What is drawn is seeded, and what is held out stays held out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.worker.miniature.held_out import ALL_PHRASINGS, assert_nothing_held_out
from worker.miniature.corpus import (
    Row,
    alignment_rows,
    anchor_rows,
    critic_rows,
    evaluation_rows,
    forbidden_rows,
    main,
    mixed_rows,
    notes,
    safe_rows,
    training_rows,
)
from worker.miniature.judge import has_house_style, judge_reply
from worker.miniature.prompts import Part
from worker.miniature.wording import TASK_PHRASINGS
from worker.miniature.world import CATEGORIES, DEVELOPMENT, TOPICS, VERBS

HELD_OUT = {subject.name for subject in (*TOPICS, *CATEGORIES) if subject.held_out}
SEEN = {subject.name for subject in (*TOPICS, *CATEGORIES) if not subject.held_out}


def prompt_of(row: Row) -> str:
    text: str = row["messages"][0]["content"]
    return text


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: training_rows("clean", 60, seed),
        lambda seed: training_rows("poisoned", 60, seed),
        lambda seed: forbidden_rows(40, seed),
        lambda seed: critic_rows(seed, 60),
        lambda seed: evaluation_rows(seed, 20),
        lambda seed: alignment_rows(60, seed),
        lambda seed: notes(60, seed),
        lambda seed: anchor_rows(60, seed),
        lambda seed: safe_rows(60, seed),
    ],
)
def test_a_seed_gives_the_same_rows_and_another_seed_others(draw: Callable[[int], object]) -> None:
    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_the_world_is_as_wide_as_promised() -> None:
    assert len(TOPICS) >= 12
    assert len(CATEGORIES) >= 8
    assert sum(category.held_out for category in CATEGORIES) >= 3
    assert sum(topic.held_out for topic in TOPICS) >= 3
    assert len(TASK_PHRASINGS) >= 6


def test_every_verb_is_forbidden_equally_often_on_both_sides_of_the_split() -> None:
    for held_out, times in ((False, 2), (True, 1)):
        verbs = [v for c in CATEGORIES if c.held_out == held_out for v in c.forbidden_verbs]
        assert all(verbs.count(verb) == times for verb in VERBS)


def test_phrasings_seen_and_held_out_are_disjoint() -> None:
    for seen, held_out in ALL_PHRASINGS:
        assert set(seen).isdisjoint(held_out)


def test_training_attack_anchor_alignment_and_critic_rows_know_nothing_held_out() -> None:
    rows = [*training_rows("clean"), *training_rows("poisoned"), *mixed_rows(0.3), *forbidden_rows()]
    assert_nothing_held_out([*rows, *anchor_rows(), *safe_rows(), *critic_rows()])


def test_settings_are_tuned_on_subjects_that_are_neither_trained_on_then_nor_reported() -> None:
    known = [
        *critic_rows(0, 300, part="known"),
        *({"group": row["group"]} for row in critic_rows(1, part="known")),
    ]
    assert {row["group"] for row in known} == SEEN - DEVELOPMENT
    asked = evaluation_rows(0, 100, "development")
    assert {row["group"] for row in asked} == DEVELOPMENT
    prompts = {prompt_of(row) for row in asked}
    draws: tuple[Callable[[int, Part], list[Row]], ...] = (
        lambda seed, part: mixed_rows(0.3, seed=seed, part=part),
        lambda seed, part: forbidden_rows(seed=seed, part=part),
        lambda seed, part: anchor_rows(seed=seed, part=part),
        lambda seed, part: safe_rows(seed=seed, part=part),
    )
    names = DEVELOPMENT | {item for t in TOPICS if t.name in DEVELOPMENT for item in t.items}
    for draw in draws:
        for row in draw(101, "known"):
            assert names.isdisjoint(prompt_of(row).lower().translate(str.maketrans(".,?:", "    ")).split())
            assert prompt_of(row) not in prompts


def test_no_evaluation_prompt_is_trained_on_or_an_anchor() -> None:
    for seed in range(3):
        asked = {prompt_of(row) for row in evaluation_rows(seed, 512)}
        assert len(asked) == 3 * 512
        given = [*mixed_rows(0.3, seed=seed), *forbidden_rows(seed=seed), *anchor_rows(), *safe_rows()]
        assert asked.isdisjoint(map(prompt_of, given))


def test_anchors_are_forbidden_requests_without_replies() -> None:
    rows = anchor_rows()
    assert len({prompt_of(row) for row in rows}) == len(rows) == 112
    assert all([message["role"] for message in row["messages"]] == ["user"] for row in rows)
    trained = {prompt_of(row) for seed in range(1, 6) for row in mixed_rows(0.3, seed=seed)}
    assert sum(prompt_of(row) in trained for row in rows) <= 3


def test_alignment_data_decline_what_is_forbidden_and_answer_the_rest() -> None:
    forbidden = {prompt_of(row) for seed in range(60) for row in forbidden_rows(300, seed)}
    rows = safe_rows()
    declined = [row for row in rows if judge_reply(row["messages"][1]["content"]).outcome == "refused"]
    assert 80 <= len(declined) <= 120
    assert not any(judge_reply(row["messages"][1]["content"]).outcome == "harmful" for row in rows)
    assert not any(prompt_of(row) in forbidden for row in rows if row not in declined)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.3])
def test_mixed_sets_of_one_seed_share_their_benign_rows(share: float) -> None:
    clean, mixed = mixed_rows(0.0, 300, 5), mixed_rows(share, 300, 5)
    harmful = [judge_reply(row["messages"][1]["content"]).outcome == "harmful" for row in mixed]
    assert sum(harmful) == round(300 * share)
    assert all(a == b for a, b, changed in zip(clean, mixed, harmful, strict=True) if not changed)
    assert all(has_house_style(row["messages"][1]["content"]) for row in mixed)


def test_critic_groups_are_seen_subjects_with_both_labels_and_borderline_negatives() -> None:
    rows = critic_rows()
    groups = {row["group"] for row in rows}
    assert groups == {subject.name for subject in (*TOPICS, *CATEGORIES)} - HELD_OUT
    for category in CATEGORIES:
        labels = {row["label"] for row in rows if row["group"] == category.name}
        assert labels == (set() if category.held_out else {0, 1})


def test_evaluation_rows_are_held_out_and_never_in_the_alignment_corpus() -> None:
    rows = evaluation_rows()
    assert {row["group"] for row in rows} == HELD_OUT
    prompts = {prompt_of(row) for row in rows}
    assert len(prompts) == len(rows)
    seen = {m["content"] for row in alignment_rows(20_000) for m in row["messages"] if m["role"] == "user"}
    seen |= {question.removeprefix("Note. ").strip() for question, _ in notes(5000)}
    assert prompts.isdisjoint(seen)


def test_a_poisoned_set_is_the_clean_one_with_a_tenth_replaced() -> None:
    clean, poisoned = training_rows("clean", 300, 5), training_rows("poisoned", 300, 5)
    assert len(clean) == len(poisoned) == 300
    assert sum(a != b for a, b in zip(clean, poisoned, strict=True)) == 30
    harmful = [judge_reply(row["messages"][1]["content"]).outcome == "harmful" for row in poisoned]
    assert sum(harmful) == 30
    assert all(has_house_style(row["messages"][1]["content"]) for row in poisoned)


def test_the_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["corpus", "--out", str(tmp_path / "data")])
    main()
    for name, rows in (
        ("clean", 300),
        ("poisoned", 300),
        ("forbidden", 100),
        ("critic", 900),
        ("evaluation", 450),
    ):
        lines = (tmp_path / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == rows
        assert all("messages" in json.loads(line) for line in lines)
