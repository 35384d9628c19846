"""The bootstrap against exact distributions and against a slow one written without arrays."""

from math import comb
from random import Random

import pytest

from benchmarks.proving_ground.statistics import bootstrap, bootstrap_difference


def binomial_quantile(n: int, share: float, level: float) -> float:
    total = 0.0
    for k in range(n + 1):
        total += comb(n, k) * share**k * (1 - share) ** (n - k)
        if total >= level:
            return k / n
    raise AssertionError("a distribution sums to 1")


def slow_bootstrap(clusters: list[list[float]], resamples: int) -> tuple[float, float]:
    rng = Random(1)  # noqa: S311
    means = []
    for _ in range(resamples):
        seeds = [rng.choice(clusters) for _ in clusters]
        within = [sum(rng.choice(seed) for _ in seed) / len(seed) for seed in seeds]
        means.append(sum(within) / len(within))
    means.sort()
    return means[round(0.05 * resamples)], means[round(0.95 * resamples) - 1]


def test_one_seed_of_shares_has_the_quantiles_of_a_binomial() -> None:
    found = bootstrap([[1.0] * 30 + [0.0] * 170])
    assert found.mean == pytest.approx(0.15)
    assert found.lower == pytest.approx(binomial_quantile(200, 0.15, 0.05), abs=0.0051)
    assert found.upper == pytest.approx(binomial_quantile(200, 0.15, 0.95), abs=0.0051)


def test_several_seeds_agree_with_the_slow_bootstrap() -> None:
    rng = Random(7)  # noqa: S311
    clusters = [
        [rng.choice([0.0, 0.25, 0.5, 1.0]) * scale for _ in range(40)] for scale in (0.2, 0.5, 1.0, 0.9)
    ]
    found = bootstrap(clusters)
    lower, upper = slow_bootstrap(clusters, 4000)
    assert found.mean == pytest.approx(sum(sum(c) / 40 for c in clusters) / 4)
    assert found.lower == pytest.approx(lower, abs=0.01)
    assert found.upper == pytest.approx(upper, abs=0.01)


def test_runs_that_differ_widen_the_interval_where_more_prompts_would_not() -> None:
    alike = [[1.0] * 500 + [0.0] * 500 for _ in range(5)]
    unlike = [[share] * 1000 for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    narrow, wide = bootstrap(alike), bootstrap(unlike)
    assert narrow.mean == pytest.approx(wide.mean)
    assert wide.upper - wide.lower > 5 * (narrow.upper - narrow.lower)


def test_seeds_count_alike_however_many_prompts_they_have() -> None:
    assert bootstrap([[1.0] * 10, [0.0] * 1000]).mean == pytest.approx(0.5)


def test_a_difference_is_paired() -> None:
    hard = [[float(i % 2) for i in range(100)] for _ in range(3)]
    better = [[max(0.0, value - 0.25) for value in seed] for seed in hard]
    found = bootstrap_difference(better, hard)
    assert found.mean == pytest.approx(-0.125)
    # Unpaired, the spread of the prompts would be in it: about 0.05 each way.
    assert found.upper - found.lower < 0.05
    assert bootstrap_difference(hard, hard) == (0.0, 0.0, 0.0)


def test_the_same_input_gives_the_same_bounds() -> None:
    clusters = [[0.0, 1.0, 0.5], [1.0, 1.0, 0.0]]
    assert bootstrap(clusters) == bootstrap(clusters)


def test_nothing_and_what_does_not_pair_are_errors() -> None:
    for nothing in ([], [[]], [[1.0], []]):
        with pytest.raises(ValueError, match="at least one value"):
            bootstrap(nothing)
    with pytest.raises(ValueError, match="same seeds and prompts"):
        bootstrap_difference([[0.0, 1.0]], [[0.0]])
    with pytest.raises(ValueError, match="same seeds and prompts"):
        bootstrap_difference([[0.0]], [[0.0], [1.0]])
