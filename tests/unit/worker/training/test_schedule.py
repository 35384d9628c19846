"""Learning rates by hand, and the control law's values as weights."""

import math

import pytest

from app.domain.training_spec import AdaptiveKL, FixedKL, NoPenalty
from worker.training.schedule import lr_multiplier, row_weights


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


def test_row_weights_follow_the_method():
    assert row_weights(AdaptiveKL(beta_min=0.1, beta_max=0.9), [0.0, 0.5, 1.0]).beta == pytest.approx(
        (0.1, 0.5, 0.9)
    )
    assert row_weights(AdaptiveKL(beta_min=0.1, beta_max=0.9), [1.0]).alpha == pytest.approx((0.1,))
    assert row_weights(FixedKL(method="fixed_kl", beta=0.3), [None, 1.0]) == ((0.7, 0.7), (0.3, 0.3))
    assert row_weights(NoPenalty(method="none"), [None]) == ((1.0,), (0.0,))
    assert row_weights(NoPenalty(method="none"), [None], floor=0.25) == ((0.75,), (0.25,))


def test_adaptive_without_s_is_an_error():
    with pytest.raises(ValueError, match="needs the s of every row"):
        row_weights(AdaptiveKL(), [None])
