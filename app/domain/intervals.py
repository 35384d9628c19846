"""95 % intervals of shares, and of the difference of two shares that were measured on the same prompts.

Closed forms, so that a verifier can demand equality. Several replies to one prompt are not independent of each other,
so an interval counts prompts, never replies. Standard library only.
"""

import math
from collections.abc import Sequence

Z = 1.959963984540054
"""The standard normal's 97.5 % point: the intervals hold with a confidence of 95 %."""


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's score interval of a share of `n` prompts (J. Am. Stat. Assoc. 22, 1927).

    `share` need not be a multiple of 1/n: with several replies a prompt it is the mean of the prompts' shares.
    Raises ValueError for a share outside [0, 1] or no prompts.
    """
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"no share of {n} prompts is {share}")
    middle = share + Z * Z / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    # Rounding must not move a bound past the end that it stands for.
    low = 0.0 if share == 0 else max(0.0, (middle - half) / scale)
    high = 1.0 if share == 1 else min(1.0, (middle + half) / scale)
    return low, high


def paired_difference(before: float, after: float, n: int, correlation: float) -> tuple[float, float]:
    """Return the interval of `after - before`, two shares of the same `n` prompts.

    Newcombe's method 10 (Stat. Med. 17, 2635, 1998): the distances of each share from its own Wilson bounds are squared
    and added, less what the two have in common. `correlation` is `paired_correlation` of the prompts.
    """
    (low_b, high_b), (low_a, high_a) = wilson(before, n), wilson(after, n)
    down = _joined(after - low_a, high_b - before, correlation)
    up = _joined(high_a - after, before - low_b, correlation)
    difference = after - before
    return max(-1.0, difference - down), min(1.0, difference + up)


def paired_correlation(before: Sequence[int], after: Sequence[int], samples: int) -> float:
    """Return how the hits of the same prompts go together, from -1 to 1; 0 where one of the two never varies.

    With one reply a prompt this is phi with Newcombe's correction, which never lets a few prompts claim too much; with
    more it is Pearson's correlation of the counts. Raises ValueError where the two are not paired.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} prompts before and {len(after)} after cannot be paired")
    n = len(before)
    # In whole numbers: the result is the same everywhere.
    total_b, total_a = sum(before), sum(after)
    together = n * sum(b * a for b, a in zip(before, after, strict=True)) - total_b * total_a
    vary_b = n * sum(b * b for b in before) - total_b * total_b
    vary_a = n * sum(a * a for a in after) - total_a * total_a
    if vary_b == 0 or vary_a == 0:
        return 0.0
    # Of single replies `together` is ad − bc of the fourfold table, from which Newcombe takes n/2 where it is positive.
    corrected = max(together - n / 2, 0.0) if samples == 1 and together > 0 else float(together)
    return max(-1.0, min(1.0, corrected / math.sqrt(vary_b * vary_a)))


def _joined(first: float, second: float, correlation: float) -> float:
    return math.sqrt(max(0.0, first * first - 2 * correlation * first * second + second * second))
