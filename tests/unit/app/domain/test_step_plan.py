"""Which rows each step takes: the order of rows, every method's plan, the anchors."""

import random
from collections import Counter

import pytest

from app.domain.safety_spec import AnySafety, Lisa, NoPenalty, SafetyMix, Vaccine
from app.domain.step_plan import (
    Layout,
    StepPlan,
    anchor_places,
    cycled_rows,
    plan_step,
    row_order,
    split_anchors,
    step_rows,
    steps_per_epoch,
    total_steps,
)

LAYOUT = Layout(n_rows=11, n_alignment=7, batch_size=4, n_epochs=3, seed=5)


def plans(safety: AnySafety, layout: Layout = LAYOUT) -> list[StepPlan]:
    law = safety.model_dump()
    return [plan_step(law, layout, step) for step in range(1, total_steps(law, layout) + 1)]


def test_a_plain_run_sees_every_row_once_per_pass() -> None:
    found = plans(NoPenalty())
    assert len(found) == 9
    for data_epoch in range(3):
        rows = [row for plan in found if plan.data_epoch == data_epoch for row in plan.rows]
        assert sorted(rows) == list(range(11))
    assert not any(plan.alignment for plan in found)


@pytest.mark.parametrize(
    "safety", [Vaccine(alignment_epochs=2), Lisa(alignment_steps=2, user_steps=4), SafetyMix(share=0.3)]
)
def test_every_method_gives_the_users_rows_in_the_order_of_a_plain_run(safety: AnySafety) -> None:
    own = [(plan.data_epoch, plan.rows) for plan in plans(safety) if plan.rows]
    assert own == [(plan.data_epoch, plan.rows) for plan in plans(NoPenalty())]


def test_vaccine_aligns_first_and_in_full() -> None:
    found = plans(Vaccine(alignment_epochs=2))
    first = [plan for plan in found if plan.alignment]
    assert found[: len(first)] == first, "all alignment comes before the user's rows"
    assert Counter(row for plan in first for row in plan.alignment) == dict.fromkeys(range(7), 2)


def test_lisa_takes_turns() -> None:
    found = plans(Lisa(alignment_steps=2, user_steps=4))
    # 9 steps of the user's in stretches of 4, each after 2 of alignment.
    assert "".join("u" if plan.rows else "a" for plan in found) == "aauuuuaauuuuaau"
    aligned = [row for plan in found for row in plan.alignment]
    assert len(aligned) == 6 * 4
    assert set(Counter(aligned).values()) <= {3, 4}, "24 draws from 7 rows go round evenly"


def test_safety_mix_keeps_its_share() -> None:
    found = plans(SafetyMix(share=0.3), LAYOUT._replace(n_epochs=20))
    counts = [len(plan.alignment) for plan in found]
    assert set(counts) == {1, 2}, "1.2 rows a step, spread evenly"
    assert sum(counts) == int(1.2 * len(found))


def test_cycled_rows_go_through_all_before_any_comes_again() -> None:
    draws = cycled_rows(range(21), 7, seed=3)
    for start in (0, 7, 14):
        assert sorted(draws[start : start + 7]) == list(range(7))
    assert draws[:7] != draws[7:14]
    assert cycled_rows(range(5, 9), 7, seed=3) == draws[5:9]


def test_row_order_is_a_pure_function_of_its_arguments() -> None:
    row_order.cache_clear()
    first = row_order(100, 1, 0)
    random.seed(5)
    row_order.cache_clear()
    assert row_order(100, 1, 0) == first
    assert sorted(first) == list(range(100))
    assert len({first, row_order(100, 1, 1), row_order(100, 2, 0)}) == 3


def test_row_order_is_pinned() -> None:
    # A change here would change the order of running jobs in the middle.
    assert row_order(8, 7, 0) == (5, 1, 6, 2, 3, 0, 7, 4)


def test_every_epoch_takes_every_row_once_and_keeps_the_short_last_batch() -> None:
    assert steps_per_epoch(10, 4) == 3
    steps = [step_rows(step, n_rows=10, batch_size=4, seed=1) for step in range(1, 7)]
    assert [step.data_epoch for step in steps] == [0, 0, 0, 1, 1, 1]
    assert [len(step.rows) for step in steps] == [4, 4, 2, 4, 4, 2]
    for epoch in (0, 1):
        assert sorted(row for step in steps if step.data_epoch == epoch for row in step.rows) == list(
            range(10)
        )


@pytest.mark.parametrize("n_rows", [1, 7])
def test_batches_larger_than_the_data_are_one_step(n_rows: int) -> None:
    assert step_rows(1, n_rows=n_rows, batch_size=256, seed=0).rows == row_order(n_rows, 0, 0)


@pytest.mark.parametrize("n_rows", [0, 1, 7, 8, 9, 40, 127, 128, 129, 136, 256])
def test_a_set_is_divided_once_and_for_all(n_rows: int) -> None:
    trained, monitored = split_anchors(n_rows)
    assert split_anchors(n_rows) == (trained, monitored)
    assert sorted(trained + monitored) == list(range(n_rows))
    assert not set(trained) & set(monitored)
    assert len(monitored) == min(16, n_rows // 8)
    assert list(trained) == sorted(trained)
    # What a set's earlier rows are for does not change with the rows after them.
    assert all(
        set(part) <= set(longer)
        for part, longer in zip((trained, monitored), split_anchors(n_rows + 5), strict=True)
    )


def test_anchors_come_in_turn() -> None:
    law = {"anchors": {"per_step": 2}}
    found = [place for step in range(1, 11) for place in anchor_places(law, step, n_anchors=4, seed=5)]
    assert [sorted(found[start : start + 4]) for start in range(0, 20, 4)] == [[0, 1, 2, 3]] * 5
    assert anchor_places(law, 1, n_anchors=1, seed=5) == (0,), "a small set is taken once a step"
    assert anchor_places({"anchors": None}, 1, n_anchors=4, seed=5) == ()
    # The anchors' order is not that of the rows.
    assert tuple(found[:4]) == row_order(4, 6, 0) != row_order(4, 5, 0)


def test_a_step_outside_the_run_is_refused() -> None:
    for step in (0, 10):
        with pytest.raises(ValueError, match=f"step {step} of a run of 9 steps"):
            plan_step({"method": "none"}, LAYOUT, step)
