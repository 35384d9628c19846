"""Intervals against published values and against SciPy's."""

from itertools import product

import pytest
from scipy.stats import binomtest, norm

from app.domain.intervals import Z, paired_correlation, paired_difference, wilson


def table(both: int, first: int, second: int, neither: int) -> tuple[list[int], list[int]]:
    """Return the hits before and after of a fourfold table; `first` is hit before only."""
    return (
        [1] * both + [1] * first + [0] * second + [0] * neither,
        [1] * both + [0] * first + [1] * second + [0] * neither,
    )


def difference(before: list[int], after: list[int]) -> tuple[float, float]:
    n = len(before)
    correlation = paired_correlation(before, after, 1)
    return paired_difference(sum(before) / n, sum(after) / n, n, correlation)


def test_the_bounds_hold_at_95_per_cent() -> None:
    assert pytest.approx(norm.ppf(0.975), abs=1e-15) == Z


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    # Newcombe, Stat. Med. 17, 857 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(count: int, n: int, low: float, high: float) -> None:
    assert wilson(count / n, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_as_scipy_has_it() -> None:
    for n in (1, 2, 7, 50, 1000):
        for count in range(0, n + 1, max(1, n // 7)):
            expected = binomtest(count, n).proportion_ci(method="wilson")
            assert wilson(count / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("share", "n"), [(0.5, 0), (-0.1, 10), (1.1, 10), (float("nan"), 10)])
def test_what_is_no_share_has_no_interval(share: float, n: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        wilson(share, n)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Fagerland, Lydersen and Laake, Stat. Med. 33, 2850 (2014): the square-and-add interval of their two examples.
        ((1, 7, 1, 12), -0.507, -0.026),
        ((59, 16, 6, 80), -0.1186, -0.0046),
    ],
)
def test_paired_difference_as_published(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    before, after = table(*counts)
    assert difference(before, after) == pytest.approx((low, high), abs=5e-4)


def test_without_correlation_the_squares_are_added() -> None:
    before, after = 0.1, 0.4
    (low_b, high_b), (low_a, high_a) = wilson(before, 50), wilson(after, 50)
    low, high = paired_difference(before, after, 50, 0.0)
    assert low == pytest.approx(0.3 - ((after - low_a) ** 2 + (high_b - before) ** 2) ** 0.5)
    assert high == pytest.approx(0.3 + ((high_a - after) ** 2 + (before - low_b) ** 2) ** 0.5)


def test_the_difference_lies_within_and_turns_with_the_sides() -> None:
    for counts in product((0, 1, 5), (0, 2), (0, 9), (1, 4)):
        before, after = table(*counts)
        n = len(before)
        low, high = difference(before, after)
        assert -1 <= low <= (sum(after) - sum(before)) / n <= high <= 1
        assert difference(after, before) == pytest.approx((-high, -low), abs=1e-12)


def test_correlation_is_careful_with_few_prompts() -> None:
    # ad − bc is 2 and n/2 is 2: what is left is nothing.
    assert paired_correlation(*table(1, 0, 1, 2), 1) == 0
    assert paired_correlation(*table(5, 0, 0, 5), 1) == pytest.approx((25 - 5) / 25)
    # Against each other it is not corrected.
    assert paired_correlation(*table(0, 5, 5, 0), 1) == -1
    assert paired_correlation([1, 1], [0, 1], 1) == 0


def test_with_several_samples_it_is_pearsons() -> None:
    before, after = [0, 1, 3, 2, 0], [1, 1, 3, 3, 0]
    expected = 0.9146591207600471  # numpy.corrcoef
    assert paired_correlation(before, after, 3) == pytest.approx(expected)


@pytest.mark.parametrize(("before", "after"), [([], []), ([1], [1, 0])])
def test_what_is_not_paired_is_refused(before: list[int], after: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_correlation(before, after, 1)
