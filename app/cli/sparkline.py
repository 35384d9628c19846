"""A curve in one line of text."""

import math
from collections.abc import Sequence
from itertools import pairwise

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Return values from 0 to 1 as blocks, at most `width` of them; each shows the highest value it covers.

    A gap stands where nothing was measured, and ! where a value is no number from 0 to 1.
    """
    width = min(width, len(values))
    edges = [len(values) * at // width for at in range(width + 1)] if width else []
    return "".join(
        _block([value for value in values[start:end] if value is not None]) for start, end in pairwise(edges)
    )


def _block(values: Sequence[float]) -> str:
    if not values:
        return " "
    if not all(0 <= value <= 1 for value in values):
        return "!"
    return BLOCKS[min(len(BLOCKS) - 1, math.floor(max(values) * len(BLOCKS)))]
