"""Which rows a step takes.

The order of the rows is a pure function of seed and data epoch, so the position in a run is one integer.
"""

import hashlib
from functools import lru_cache
from typing import NamedTuple


class StepRows(NamedTuple):
    """What one optimiser step trains on."""

    data_epoch: int
    """From 0."""
    rows: tuple[int, ...]
    """Positions in the list of tokenized rows, in the order of the step."""


@lru_cache(maxsize=4)
def row_order(n_rows: int, seed: int, data_epoch: int) -> tuple[int, ...]:
    """Return a permutation of `range(n_rows)`: the rows sorted by SHA-256 of "seed/data_epoch/row".

    A hash rather than a random generator: no library's update can change it in the middle of a job, and anyone
    can replay it.
    """
    keys = [hashlib.sha256(f"{seed}/{data_epoch}/{row}".encode()).digest() for row in range(n_rows)]
    return tuple(sorted(range(n_rows), key=keys.__getitem__))


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Return the steps of one pass over the data; a short last batch counts."""
    return -(-n_rows // batch_size)


def step_rows(step: int, *, n_rows: int, batch_size: int, seed: int) -> StepRows:
    """Return what `step`, counted from 1, trains on. The last batch of a data epoch may be short."""
    data_epoch, position = divmod(step - 1, steps_per_epoch(n_rows, batch_size))
    order = row_order(n_rows, seed, data_epoch)
    return StepRows(data_epoch, order[position * batch_size : (position + 1) * batch_size])
