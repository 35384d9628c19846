"""Intervals of means, where no closed form holds, by a percentile bootstrap over prompts."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.domain.evaluation import MIN_PROMPTS_OF_MEAN, NOT_MEASURED, Comparison, Measure

RESAMPLES = 4000
SEED = 20_260_219
CHUNK = 2_000_000
"""Numbers that are drawn at once."""


def compare_means(
    name: str, before: Sequence[float], after: Sequence[float] | None, *, unjudged: int = 0
) -> Comparison:
    """Return the comparison of two means over the same prompts; `after` is None where there is no adapter.

    The difference is resampled in pairs. The same numbers give the same intervals; a bootstrap knows of no spread that
    the numbers do not have. Fewer than MIN_PROMPTS_OF_MEAN are not measured, and counted as left out. Raises ValueError
    where the two are not paired.
    """
    if after is not None and len(before) != len(after):
        raise ValueError(f"{len(before)} prompts before and {len(after)} after cannot be paired")
    first = measure_mean(before)
    if first == NOT_MEASURED:
        unjudged += len(before)
    if after is None or first == NOT_MEASURED:
        return Comparison(name, None, first, NOT_MEASURED, NOT_MEASURED, None, None, unjudged)
    difference = measure_mean(np.subtract(after, before).tolist())
    return Comparison(name, None, first, measure_mean(after), difference, None, None, unjudged)


def measure_mean(values: Sequence[float]) -> Measure:
    """Return the mean with its percentile bounds; too few numbers are not measured."""
    if len(values) < MIN_PROMPTS_OF_MEAN:
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
