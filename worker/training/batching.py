"""Which rows a step takes, how they are cut into micro-batches, and the tensors of one.

The order of the rows is a pure function of seed and data epoch, so the position in a run is one integer.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worker.training.data import TokenizedRow


class StepRows(NamedTuple):
    """What one optimiser step trains on."""

    data_epoch: int
    """From 0."""
    rows: tuple[int, ...]
    """Positions in the list of tokenized rows, in the order of the step."""


class Batch(NamedTuple):
    """A right-padded micro-batch of b rows, t tokens long, with n loss-bearing tokens in row-major order."""

    input_ids: Tensor
    """(b, t) int64."""
    attention_mask: Tensor | None
    """(b, t) int64, 1 on tokens; None where nothing is padded."""
    predecessors: Tensor
    """(n,) int64: where each loss-bearing token is predicted, as an index into the b·t flattened positions."""
    labels: Tensor
    """(n,) int64: the loss-bearing tokens themselves."""
    rows: Tensor
    """(n,) int64: the row of the micro-batch that each belongs to."""


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


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut rows into micro-batches of at most `max_tokens` tokens, padding included.

    Returns lists of indices into `lengths`, the longest rows first, so that little is padded. A row that is longer
    than the budget gets a micro-batch of its own.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def collate(rows: Sequence[TokenizedRow], device: torch.device) -> Batch:
    """Return the tensors of a micro-batch. Padding is token 0, to the right, masked and without loss."""
    lengths = [len(row.input_ids) for row in rows]
    width = max(lengths)
    input_ids = np.zeros((len(rows), width), dtype=np.int64)
    loss_mask = np.zeros((len(rows), width), dtype=bool)
    for place, row in enumerate(rows):
        input_ids[place, : lengths[place]] = row.input_ids
        loss_mask[place, : lengths[place]] = row.loss_mask
    row_of_token, position = np.nonzero(loss_mask)
    attention_mask = None
    if min(lengths) < width:
        attention_mask = _to(device, (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64))
    return Batch(
        _to(device, input_ids),
        attention_mask,
        _to(device, row_of_token * width + position - 1),
        _to(device, input_ids[row_of_token, position]),
        _to(device, row_of_token),
    )


def _to(device: torch.device, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(device)
