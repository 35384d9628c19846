"""Intervals by a paired bootstrap clustered by seed.

What is compared is measured prompt by prompt on the same prompts with the same seed. A resample first draws seeds, then
prompts within each drawn seed, both with replacement, so that it knows that runs differ as well as prompts. With few
seeds such an interval is too narrow rather than too wide: five seeds say little about a sixth.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
SEED = 20_260_219
LEVEL = 0.95

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean and its one-sided bounds: each holds with a confidence of 95 %, so together they hold with 90 %."""

    mean: float
    lower: float
    upper: float


def bootstrap(clusters: Sequence[Sequence[float]]) -> Interval:
    """Return the mean over clusters of the mean within each, and its percentile bounds.

    `clusters` has one list a seed, of one value a prompt: shares, or differences of shares. Seeds count alike however
    many prompts they have. The same input gives the same bounds. Raises ValueError where there is nothing to resample.
    """
    if not clusters or not all(len(cluster) for cluster in clusters):
        raise ValueError("every seed needs at least one value")
    draws = np.random.default_rng(SEED)
    within = np.stack([_resample_means(np.asarray(cluster, dtype=np.float64), draws) for cluster in clusters])
    n = len(clusters)
    chosen = draws.integers(n, size=(RESAMPLES, n))
    # A seed that is drawn twice in one resample has its prompts drawn twice.
    columns = draws.integers(RESAMPLES, size=(RESAMPLES, n))
    means = within[chosen, columns].mean(axis=1)
    lower, upper = np.quantile(means, [1 - LEVEL, LEVEL])
    return Interval(float(np.mean([np.mean(cluster) for cluster in clusters])), float(lower), float(upper))


def bootstrap_difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Interval:
    """Return the interval of first minus second, paired by seed and prompt. Raises ValueError where they do not pair."""
    if [len(cluster) for cluster in first] != [len(cluster) for cluster in second]:
        raise ValueError("the two were not measured on the same seeds and prompts")
    return bootstrap([np.subtract(a, b).tolist() for a, b in zip(first, second, strict=True)])


def _resample_means(values: Array, draws: np.random.Generator) -> Array:
    """Return RESAMPLES means of resampled values.

    The values are few distinct ones (shares of a handful of samples), so a resample is a multinomial count of them.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = draws.multinomial(len(values), counts / len(values), size=RESAMPLES)
    means: Array = drawn @ distinct / len(values)
    return means
