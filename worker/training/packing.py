"""How rows become micro-batches, and the tensors of one.

Packed, several rows lie one after another in a single row of the batch, without padding. Each attends to itself alone
(see `attention.py`), so a packed step is gradient accumulation over its rows in fewer passes. Models that cannot be
packed take rows side by side, padded on the right.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


class Row(Protocol):
    """What a batch needs of a row; a `TokenizedRow` is one."""

    @property
    def input_ids(self) -> Sequence[int]:
        """The tokens."""

    @property
    def loss_mask(self) -> Sequence[bool]:
        """True on the tokens that bear loss."""


class Batch(NamedTuple):
    """A micro-batch of b·t positions in row-major order, n of whose tokens bear loss. Packed, b is 1."""

    input_ids: Tensor
    """(b, t) int64."""
    position_ids: Tensor | None
    """(1, t) int64, from 0 in each row; None where rows are side by side."""
    attention_mask: Tensor | None
    """(b, t) int64, 1 on tokens; None where nothing is padded."""
    cu_seqlens: Tensor | None
    """(rows + 1,) int32: where each packed row starts, and t at the end; None where rows are side by side."""
    max_length: int
    """Tokens of the longest row."""
    predecessors: Tensor
    """(n,) int64: where each loss-bearing token is predicted, as an index into the b·t flattened positions."""
    labels: Tensor
    """(n,) int64: the loss-bearing tokens themselves."""
    rows: Tensor
    """(n,) int64: the row of the micro-batch that each belongs to."""
    starts: tuple[int, ...]
    """Of each row: the flattened position of its first token."""


def micro_batches(lengths: Sequence[int], max_tokens: int, *, packed: bool) -> list[list[int]]:
    """Cut rows into micro-batches of at most `max_tokens` tokens, padding included.

    Returns lists of indices into `lengths`. Each list has the longest rows first, so that little is padded, and rows
    of one length are neighbours. A row that is longer than the budget gets a micro-batch of its own.
    """
    longest_first = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    if packed:
        return _best_fit(lengths, longest_first, max_tokens)
    batches: list[list[int]] = []
    for row in longest_first:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _best_fit(lengths: Sequence[int], longest_first: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Put each row into the fullest batch that has room for it: best fit decreasing (Johnson, 1973)."""
    batches: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, batch), sorted
    for row in longest_first:
        place = bisect_left(room, (lengths[row], 0))
        if place < len(room):
            left, batch = room.pop(place)
            batches[batch].append(row)
        else:
            left, batch = max_tokens, len(batches)
            batches.append([row])
        insort(room, (left - lengths[row], batch))
    return batches


def collate(rows: Sequence[Row], device: torch.device, *, packed: bool) -> Batch:
    """Return the tensors of a micro-batch, its rows in the order given.

    Padding, where rows are side by side, is token 0, to the right, masked and without loss.
    """
    lengths = np.array([len(row.input_ids) for row in rows])
    width = int(lengths.max())
    if packed:
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        shape = (1, int(lengths.sum()))
    else:
        starts = np.arange(len(rows)) * width
        shape = (len(rows), width)
    position = np.concatenate([np.arange(length) for length in lengths])
    place = np.repeat(starts, lengths) + position
    tokens = np.concatenate([row.input_ids for row in rows])
    bears = np.flatnonzero(np.concatenate([row.loss_mask for row in rows]))
    input_ids = np.zeros(shape, dtype=np.int64)
    input_ids.reshape(-1)[place] = tokens
    attention_mask = position_ids = cu_seqlens = None
    if packed:
        position_ids = _to(device, position[None])
        cu_seqlens = _to(device, np.append(starts, shape[1]).astype(np.int32))
    elif lengths.min() < width:
        attention_mask = _to(device, (np.arange(width) < lengths[:, None]).astype(np.int64))
    return Batch(
        input_ids=_to(device, input_ids),
        position_ids=position_ids,
        attention_mask=attention_mask,
        cu_seqlens=cu_seqlens,
        max_length=width,
        predecessors=_to(device, place[bears] - 1),
        labels=_to(device, tokens[bears]),
        rows=_to(device, np.repeat(np.arange(len(rows)), lengths)[bears]),
        starts=tuple(starts.tolist()),
    )


def _to(device: torch.device, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(device)
