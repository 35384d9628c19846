"""The risk curve: what the steps of a job looked like, for charts and tables.

A curve is `{"columns": [...], "rows": [[...], ...]}`. A number that is not finite is a word ("NaN"), because
JSON has no sign for it and a diverged loss must not look like a missing one.

A long curve is kept packed, a piece at a time: eight bytes a cell, so that a hundred thousand steps are read without
parsing a hundred thousand records. A packed piece ends with what the next one goes on from.
"""

import csv
import io
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from app.domain.canonical import encode_number

COLUMNS = (
    "step",
    "risk_mean",
    "risk_max",
    "risk_smoothed",
    "beta_mean",
    "beta_max",
    "alpha_mean",
    "nll",
    "kl",
    "loss",
    "lr",
    "anchor_kl",
    "drift",
)
DECAY = 0.9
"""Of the exponential average in `risk_smoothed`, per step."""

Cell = int | float | str | None
Row = list[Cell]
Number = int | float | None

_STEP = COLUMNS.index("step")
_RISK_MAX = COLUMNS.index("risk_max")
_LOSS = COLUMNS.index("loss")


class Carry(NamedTuple):
    """What the rows of later steps need of those before them."""

    average: float = 0.0
    weight: float = 0.0
    drift: Number = None


def build_curve(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the curve of step records (`StepRecord.to_dict`, or the body of a step's leaf), one row a step."""
    rows, _ = _rows_of(records, Carry())
    return {"columns": list(COLUMNS), "rows": [_shown(row) for row in rows]}


def _rows_of(records: Iterable[Mapping[str, Any]], carry: Carry) -> tuple[list[list[Number]], Carry]:
    """Return a row per record, and what comes after them goes on from.

    `drift` is what the run-level monitor measured last, so that a curve with fewer points still shows it; a record has
    it where the monitor measured after that step. `risk_smoothed` is the exponential average of risk_mean, corrected
    for its start at nothing, so that the first value is the first risk_mean. It is null where risk_mean is.
    """
    rows: list[list[Number]] = []
    average, weight, drift = carry
    for record in records:
        drift = record.get("drift", drift)
        risk = record["risk_mean"]
        if risk is not None:
            average = DECAY * average + (1 - DECAY) * risk
            weight = DECAY * weight + (1 - DECAY)
        smoothed = None if risk is None else average / weight
        # A record from before there were anchors has no word of them.
        made = {"risk_smoothed": smoothed, "drift": drift, "anchor_kl": record.get("anchor_kl")}
        rows.append([made[name] if name in made else record[name] for name in COLUMNS])
    return rows, Carry(average, weight, drift)


_WIDTH = len(COLUMNS)
_ROW = struct.Struct(f"<{_WIDTH}d")
_CARRY = struct.Struct("<3d")
# A cell without a value is a NaN of its own kind, so that a loss which is no number stays one.
_NULL = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_07A2))[0]
_NULL_BYTES = struct.pack("<d", _NULL)


def pack_steps(records: Iterable[Mapping[str, Any]], before: bytes | None) -> bytes:
    """Return the next piece of a packed curve; `before` is the piece that ends where these records begin."""
    rows, carry = _rows_of(records, Carry() if before is None else _unpack_carry(before))
    cells = chain.from_iterable((*rows, carry))
    return struct.pack(
        f"<{len(rows) * _WIDTH + len(carry)}d", *(_NULL if cell is None else cell for cell in cells)
    )


def build_packed_curve(
    pieces: Sequence[bytes],
    records: Iterable[Mapping[str, Any]],
    max_points: int,
    *,
    from_step: int | None = None,
    to_step: int | None = None,
) -> dict[str, Any]:
    """Return the curve of packed pieces and of the records after them, with at most `max_points` rows.

    They are the rows that `downsample` keeps of `build_curve`; the others are never made. `from_step` and `to_step`, both
    of them included, leave out the steps before and after, so that a part is seen more closely than the whole.
    """
    packed = [*pieces, pack_steps(records, pieces[-1] if pieces else None)]
    heights = _packed_heights(packed, _RISK_MAX)
    if all(height == -float("inf") for height in heights):
        heights = _packed_heights(packed, _LOSS)
    start, stop = 0, len(heights)
    if from_step is not None or to_step is not None:
        steps = _packed_heights(packed, _STEP)
        start = 0 if from_step is None else bisect_left(steps, from_step)
        stop = stop if to_step is None else bisect_right(steps, to_step)
    inside = heights[start:stop]
    kept = range(len(inside)) if len(inside) <= max_points else _choose(inside, max_points)
    return {"columns": list(COLUMNS), "rows": _unpack_rows(packed, [start + at for at in kept])}


def _unpack_carry(piece: bytes) -> Carry:
    average, weight, drift = _CARRY.unpack_from(piece, len(piece) - _CARRY.size)
    return Carry(average, weight, None if piece.endswith(_NULL_BYTES) else drift)


def _unpack_rows(packed: Sequence[bytes], kept: Iterable[int]) -> list[Row]:
    """Return the rows at these places of all pieces, in order, as they are shown."""
    rows: list[Row] = []
    pieces = iter(packed)
    piece, first, end = b"", 0, 0
    for at in kept:
        while at >= end:
            piece = next(pieces)
            first, end = end, end + len(piece) // _ROW.size
        start = (at - first) * _ROW.size
        step, *cells = _ROW.unpack_from(piece, start)
        row: Row = [int(step)]
        # Most cells are plain numbers, which are made as `encode_number` makes them and without asking it.
        row += [
            (cell or 0) if cell - cell == 0 else _shown_odd(piece, start, column, cell)
            for column, cell in enumerate(cells, start=1)
        ]
        rows.append(row)
    return rows


def _shown_odd(piece: bytes, start: int, column: int, cell: float) -> Cell:
    return None if _is_null(piece, start, column) else encode_number(cell)


def _is_null(piece: bytes, start: int, column: int) -> bool:
    """Say whether a cell of the row that starts there has no value; a NaN that was measured is none of these."""
    at = start + column * len(_NULL_BYTES)
    return piece[at : at + len(_NULL_BYTES)] == _NULL_BYTES


def _packed_heights(packed: Sequence[bytes], column: int) -> list[float]:
    heights: list[float] = []
    for piece in packed:
        # In the order of bytes of every machine that torch runs on.
        cells: Sequence[float] = memoryview(piece)[: -_CARRY.size].cast("d")[column::_WIDTH].tolist()
        # A sum is a number only where all of its parts are; then there is nothing to look at one by one.
        total = sum(cells)
        if total != total:  # noqa: PLR0124 - only NaN differs from itself.
            cells = [
                _height(None if _is_null(piece, at * _ROW.size, column) else cell)
                for at, cell in enumerate(cells)
            ]
        heights += cells
    return heights


def downsample(rows: Sequence[Row], max_points: int) -> list[Row]:
    """Return at most `max_points` rows, in order: the first, the last and each bucket's extremes of risk_max.

    So a spike of a single step survives. Where no risk was measured, the extremes are those of the loss.
    Raises ValueError below 4 points, which could not hold both ends and both extremes.
    """
    if max_points < 4:
        raise ValueError(f"max_points is {max_points}; at least 4 hold both ends, the lowest and the highest")
    if len(rows) <= max_points:
        return list(rows)
    measured = any(row[_RISK_MAX] is not None for row in rows)
    column = _RISK_MAX if measured else _LOSS
    return [rows[at] for at in _choose([_height(row[column]) for row in rows], max_points)]


def _choose(heights: Sequence[float], max_points: int) -> list[int]:
    """Return the indices of the rows that a curve of fewer points keeps."""
    inner = len(heights) - 2
    buckets = (max_points - 2) // 2
    kept = {0, len(heights) - 1}
    for bucket in range(buckets):
        start, end = 1 + bucket * inner // buckets, 1 + (bucket + 1) * inner // buckets
        inside = heights[start:end]
        kept.add(start + inside.index(min(inside)))
        kept.add(start + inside.index(max(inside)))
    return sorted(kept)


def to_csv(curve: Mapping[str, Any]) -> str:
    """Return a curve as CSV with a header line; null is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(curve["columns"])
    writer.writerows(curve["rows"])
    return text.getvalue()


def _shown(row: Iterable[Number]) -> Row:
    return [encode_number(cell) if isinstance(cell, float) else cell for cell in row]


def _height(value: Cell) -> float:
    """Return where a cell stands among others. Not a number stands highest: it is what must be seen."""
    if value is None:
        return -float("inf")
    height = float(value)
    return float("inf") if height != height else height  # noqa: PLR0124 - only NaN differs from itself.
