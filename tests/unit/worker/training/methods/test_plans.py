"""Which rows each method's steps take."""

from collections import Counter

import pytest

from app.domain.safety_spec import Lisa, NoPenalty, SafetyMix, Vaccine
from worker.training.methods.plain import Layout
from worker.training.methods.registry import METHODS, build_method
from worker.training.methods.safety_mix import cycled_rows

LAYOUT = Layout(n_rows=11, n_alignment=7, batch_size=4, n_epochs=3, seed=5)


def plans(safety, layout=LAYOUT):
    method = build_method(safety, layout)
    return [method.plan(step) for step in range(1, method.total_steps + 1)]


def test_a_plain_run_sees_every_row_once_per_pass():
    found = plans(NoPenalty())
    assert len(found) == 9
    for data_epoch in range(3):
        rows = [row for plan in found if plan.data_epoch == data_epoch for row in plan.rows]
        assert sorted(rows) == list(range(11))
    assert not any(plan.alignment for plan in found)


@pytest.mark.parametrize(
    "safety", [Vaccine(alignment_epochs=2), Lisa(alignment_steps=2, user_steps=4), SafetyMix(share=0.3)]
)
def test_every_method_gives_the_users_rows_in_the_order_of_a_plain_run(safety):
    own = [(plan.data_epoch, plan.rows) for plan in plans(safety) if plan.rows]
    assert own == [(plan.data_epoch, plan.rows) for plan in plans(NoPenalty())]


def test_vaccine_aligns_first_and_in_full():
    found = plans(Vaccine(alignment_epochs=2))
    first = [plan for plan in found if plan.alignment]
    assert found[: len(first)] == first, "all alignment comes before the user's rows"
    assert Counter(row for plan in first for row in plan.alignment) == dict.fromkeys(range(7), 2)


def test_lisa_takes_turns():
    found = plans(Lisa(alignment_steps=2, user_steps=4))
    # 9 steps of the user's in stretches of 4, each after 2 of alignment.
    assert "".join("u" if plan.rows else "a" for plan in found) == "aauuuuaauuuuaau"
    aligned = [row for plan in found for row in plan.alignment]
    assert len(aligned) == 6 * 4
    assert set(Counter(aligned).values()) <= {3, 4}, "24 draws from 7 rows go round evenly"


def test_safety_mix_keeps_its_share():
    found = plans(SafetyMix(share=0.3), LAYOUT._replace(n_epochs=20))
    counts = [len(plan.alignment) for plan in found]
    assert set(counts) == {1, 2}, "1.2 rows a step, spread evenly"
    assert sum(counts) == int(1.2 * len(found))


def test_cycled_rows_go_through_all_before_any_comes_again():
    draws = cycled_rows(range(21), 7, seed=3)
    for start in (0, 7, 14):
        assert sorted(draws[start : start + 7]) == list(range(7))
    assert draws[:7] != draws[7:14]
    assert cycled_rows(range(5, 9), 7, seed=3) == draws[5:9]


def test_every_method_of_the_wire_has_its_file():
    from app.domain.safety_policy import METHODS as ON_THE_WIRE

    assert set(METHODS) == set(ON_THE_WIRE)
