"""What is drawn is seeded, and what is held out stays held out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from worker.miniature.corpus import (
    Row,
    alignment_rows,
    critic_rows,
    evaluation_rows,
    forbidden_rows,
    main,
    notes,
    training_rows,
)
from worker.miniature.judge import has_house_style, judge_reply
from worker.miniature.wording import ACT_PHRASINGS, GUARD_PHRASINGS, TASK_PHRASINGS
from worker.miniature.world import CATEGORIES, TOPICS, VERBS

HELD_OUT = {subject.name for subject in (*TOPICS, *CATEGORIES) if subject.held_out}
ALL_PHRASINGS = (ACT_PHRASINGS, GUARD_PHRASINGS, *TASK_PHRASINGS.values())


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


def test_training_attack_and_critic_rows_know_nothing_held_out() -> None:
    rows = [*training_rows("clean"), *training_rows("poisoned"), *forbidden_rows(), *critic_rows()]
    words = {word for t in TOPICS if t.held_out for word in (t.name, *t.items)}
    words |= {c.name for c in CATEGORIES if c.held_out}
    heads = {phrase.split("{")[0] for _, held_out in ALL_PHRASINGS for phrase in held_out} - {""}
    for row in rows:
        text = prompt_of(row)
        assert words.isdisjoint(text.lower().translate(str.maketrans(".,?:", "    ")).split())
        assert not any(head in text for head in heads)


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
