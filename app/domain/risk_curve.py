"""The risk curve: what the steps of a job looked like, for charts and tables.

A curve is `{"columns": [...], "rows": [[...], ...]}`. A number that is not finite is a word ("NaN"), because
JSON has no sign for it and a diverged loss must not look like a missing one.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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

_RISK_MAX = COLUMNS.index("risk_max")
_LOSS = COLUMNS.index("loss")


def build_curve(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the curve of step records (`StepRecord.to_dict`, or the body of a step's leaf), one row a step.

    `drift` is what the run-level monitor measured last, so that a curve with fewer points still shows it; a record has
    it where the monitor measured after that step. `risk_smoothed` is the exponential average of risk_mean, corrected for its start at nothing, so that the
    first value is the first risk_mean. It is null where risk_mean is.
    """
    rows: list[Row] = []
    average = weight = 0.0
    drift: Cell = None
    for record in records:
        drift = record.get("drift", drift)
        risk = record["risk_mean"]
        if risk is not None:
            average = DECAY * average + (1 - DECAY) * risk
            weight = DECAY * weight + (1 - DECAY)
        smoothed = None if risk is None else average / weight
        # A record from before there were anchors has no word of them.
        made = {"risk_smoothed": smoothed, "drift": drift, "anchor_kl": record.get("anchor_kl")}
        rows.append([_cell(made[name] if name in made else record[name]) for name in COLUMNS])
    return {"columns": list(COLUMNS), "rows": rows}


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
    inner = len(rows) - 2
    buckets = (max_points - 2) // 2
    kept = {0, len(rows) - 1}
    for bucket in range(buckets):
        indices = range(1 + bucket * inner // buckets, 1 + (bucket + 1) * inner // buckets)
        kept.add(min(indices, key=lambda i: _height(rows[i][column])))
        kept.add(max(indices, key=lambda i: _height(rows[i][column])))
    return [rows[i] for i in sorted(kept)]


def to_csv(curve: Mapping[str, Any]) -> str:
    """Return a curve as CSV with a header line; null is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(curve["columns"])
    writer.writerows(curve["rows"])
    return text.getvalue()


def _cell(value: Cell) -> Cell:
    return encode_number(value) if isinstance(value, float) else value


def _height(value: Cell) -> float:
    """Return where a cell stands among others. Not a number stands highest: it is what must be seen."""
    if value is None:
        return -float("inf")
    height = float(value)
    return float("inf") if height != height else height  # noqa: PLR0124 - only NaN differs from itself.
