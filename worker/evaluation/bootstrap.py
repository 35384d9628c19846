"""Intervals of means, where no closed form holds, by a percentile bootstrap over prompts."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.domain.evaluation import NOT_MEASURED, Comparison, Measure

RESAMPLES = 4000
SEED = 20_260_219
CHUNK = 2_000_000
"""Numbers that are drawn at once."""


def compare_means(
    name: str, before: Sequence[float], after: Sequence[float] | None, *, unjudged: int = 0
) -> Comparison:
    """Return the comparison of two means over the same prompts; `after` is None where there is no adapter.

    The difference is resampled in pairs. The same numbers give the same intervals; a bootstrap knows of no spread that
    the numbers do not have. Raises ValueError where the two are not paired.
    """
    first = measure_mean(before)
    if after is None or not before:
        return Comparison(name, None, first, NOT_MEASURED, NOT_MEASURED, None, None, unjudged)
    if len(before) != len(after):
        raise ValueError(f"{len(before)} prompts before and {len(after)} after cannot be paired")
    difference = measure_mean(np.subtract(after, before).tolist())
    return Comparison(name, None, first, measure_mean(after), difference, None, None, unjudged)


def measure_mean(values: Sequence[float]) -> Measure:
    """Return the mean with its percentile bounds."""
    if not values:
        return NOT_MEASURED
    array = np.asarray(values, dtype=np.float64)
    low, high = np.quantile(_resampled_means(array), [0.025, 0.975])
    mean = float(array.mean())
    # The mean of equal numbers can differ from them in its last bit.
    return Measure(mean, min(float(low), mean), max(float(high), mean), len(values))


def _resampled_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    draws = np.random.default_rng(SEED)
    n = len(values)
    rows = max(1, CHUNK // n)
    means = [
        values[draws.integers(n, size=(min(rows, RESAMPLES - start), n))].mean(axis=1)
        for start in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(means)
