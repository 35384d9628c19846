"""Learning rates by hand."""

import math

import pytest

from app.domain.learning_rate import lr_multiplier


def multipliers(kind, total, warmup_ratio):
    return [
        lr_multiplier(step, total_steps=total, warmup_ratio=warmup_ratio, kind=kind)
        for step in range(1, total + 1)
    ]


def test_linear():
    assert multipliers("linear", 4, 0.0) == [1.0, 0.75, 0.5, 0.25]
    assert multipliers("linear", 6, 0.34) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25])


def test_constant_with_warmup():
    assert multipliers("constant", 5, 0.4) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


def test_cosine():
    expected = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert multipliers("cosine", 4, 0.0) == pytest.approx(expected)
    assert multipliers("cosine", 4, 0.0)[2] == pytest.approx(0.5)


def test_one_step_runs_at_the_full_rate():
    assert multipliers("linear", 1, 0.5) == [1.0]


@pytest.mark.parametrize("step", [0, 5])
def test_a_step_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match="outside 1 to 4"):
        lr_multiplier(step, total_steps=4, warmup_ratio=0, kind="linear")


def test_an_unknown_schedule_is_refused():
    with pytest.raises(
        ValueError, match="unknown learning-rate schedule 'step'; known: constant, linear, cosine"
    ):
        lr_multiplier(1, total_steps=4, warmup_ratio=0, kind="step")
