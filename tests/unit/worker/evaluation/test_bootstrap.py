"""Means and their intervals, beside SciPy's own bootstrap."""

import numpy as np
import pytest
from scipy import stats

from app.domain.evaluation import NOT_MEASURED
from worker.evaluation.bootstrap import compare_means, measure_mean

VALUES = np.random.default_rng(1).gamma(2.0, 1.5, 80)


def test_the_interval_is_that_of_scipy() -> None:
    found = measure_mean(VALUES.tolist())
    expected = stats.bootstrap(
        (VALUES,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.value == pytest.approx(VALUES.mean())
    # Two bootstraps differ by chance: by a few per cent of the width.
    assert (found.low, found.high) == pytest.approx(
        tuple(expected), abs=0.05 * (expected.high - expected.low)
    )
    assert found.n == 80
    assert measure_mean(VALUES.tolist()) == found


def test_differences_are_resampled_in_pairs() -> None:
    shifted = VALUES + 0.25 + np.random.default_rng(3).normal(0, 0.01, 80)
    found = compare_means("loss", VALUES.tolist(), shifted.tolist(), unjudged=3)
    assert found.difference.value == pytest.approx(0.25, abs=0.005)
    assert found.difference.low is not None
    assert found.difference.high is not None
    # Unpaired, the interval would be as wide as both together.
    assert found.difference.high - found.difference.low < 0.01
    assert found.after.value == pytest.approx(found.before.value + found.difference.value)
    assert (found.samples, found.correlation, found.unjudged) == (None, None, 3)


def test_a_base_model_has_no_after() -> None:
    found = compare_means("loss", [1.0, 2.0], None)
    assert found.before.value == 1.5
    assert found.after == found.difference == NOT_MEASURED


def test_nothing_is_nothing_and_equal_numbers_have_no_spread() -> None:
    assert measure_mean([]) == NOT_MEASURED
    found = measure_mean([0.1] * 10)
    assert found.low == found.value == found.high


def test_a_single_number_has_no_interval_and_is_not_measured() -> None:
    assert measure_mean([0.5]) == NOT_MEASURED
    for after in ([0.75], None):
        found = compare_means("rouge_l.greedy", [0.5], after, unjudged=2)
        assert found.before == found.after == found.difference == NOT_MEASURED
        assert found.unjudged == 3


def test_what_is_not_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        compare_means("loss", [1.0], [1.0, 2.0])
