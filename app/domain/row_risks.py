"""What a report says of the risks of rows, and how much of it the operator lets be seen.

An exact score is an oracle: who may ask for many learns to write rows that the critic does not see. Buckets tell
people which rows to look at, and tell an attacker little. Standard library only.
"""

import math
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

from app.domain.control_law import (
    UNSTEERED,
    compute_row_beta,
    compute_treatment,
    mean,
)

Visibility = Literal["full", "bucketed", "none"]
VISIBILITIES: tuple[Visibility, ...] = get_args(Visibility)
EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Between two of them s is in one bucket."""
MAX_LISTED = 100
"""The riskiest rows that a report names."""


def pack_scores(scores: Mapping[int, float | None], rows: int) -> bytes:
    """Return the s of each row of a file as little-endian doubles; NaN for a row that nobody measured."""
    values = [scores.get(row) for row in range(rows)]
    return struct.pack(f"<{rows}d", *(math.nan if value is None else value for value in values))


def unpack_scores(packed: bytes) -> tuple[float, ...]:
    """Return what `pack_scores` packed."""
    return struct.unpack(f"<{len(packed) // 8}d", packed)


def bucket_of(s: float) -> int:
    """Return the bucket that s lies in, counted from 0; an edge belongs to the bucket above it."""
    return next(place for place in reversed(range(len(EDGES) - 1)) if s >= EDGES[place])


def name_bucket(bucket: int) -> str:
    """Return a bucket as people read it."""
    return f"{EDGES[bucket]:g} to {EDGES[bucket + 1]:g}"


def describe_risks(
    safety: Mapping[str, Any], scores: Mapping[int, float | None], visibility: Visibility
) -> dict[str, Any] | None:
    """Return what is shown of the rows' s: their distribution, and the riskiest first. None where nothing is."""
    measured = {row: s for row, s in scores.items() if s is not None}
    if visibility == "none" or not measured:
        return None
    counts = Counter(bucket_of(s) for s in measured.values())
    treatments = {row: compute_treatment(safety, s) for row, s in measured.items()}
    # Within a bucket the order must not tell what the bucket hides.
    ranks = measured if visibility == "full" else {row: bucket_of(s) for row, s in measured.items()}
    riskiest = sorted(measured, key=lambda row: (-ranks[row], row))[:MAX_LISTED]
    listed: list[dict[str, Any]] = []
    for row in riskiest:
        entry: dict[str, Any] = {"row": row, "bucket": name_bucket(bucket_of(measured[row]))}
        if visibility == "full":
            entry |= {"s": measured[row], "beta": compute_row_beta(safety, measured[row])}
        listed.append({**entry, "treatment": treatments[row]})
    return {
        "rows": len(measured),
        "distribution": [
            {"bucket": name_bucket(bucket), "rows": counts[bucket]} for bucket in range(len(EDGES) - 1)
        ],
        "treatments": dict(Counter(treatments.values())),
        "mean": mean(list(measured.values())) if visibility == "full" else None,
        "riskiest": listed,
    }


def choose_shown(
    by_visibility: Mapping[str, Mapping[str, Any]], visibility: Visibility, threshold: object
) -> Mapping[str, Any]:
    """Return what is shown of the rows' risks and of what follows from them: `risk`, `expected_beta_mean`, `steps`.

    `threshold` is the one that was asked for, None where there was none. What becomes of each row tells on which side
    of it s lies: a threshold that its caller may move finds every score by halves, so that in buckets nothing is
    said of it unless it is the critic's own or parts the rows as the buckets do.
    """
    shown = by_visibility[visibility]
    if visibility != "bucketed" or tells_no_score(threshold):
        return shown
    risk = shown["risk"]
    if risk is not None:
        risk = {name: value for name, value in risk.items() if name != "treatments"}
        risk["riskiest"] = [
            {name: value for name, value in each.items() if name != "treatment"} for each in risk["riskiest"]
        ]
    return {**shown, "risk": risk, "steps": by_visibility["none"]["steps"]}


def tells_no_score(threshold: object) -> bool:
    """Say whether what becomes of the rows by this threshold tells no more of their s than the buckets do."""
    return threshold in (None, "auto") or threshold in EDGES[:-1]


def expect_beta(
    safety: Mapping[str, Any], scores: Mapping[int, float | None], visibility: Visibility
) -> float | None:
    """Return the mean KL weight of the rows that are trained on, before the monitor and a live judge raise it.

    By buckets it is the mean of their middles, to two digits: the exact one is an oracle like a score, because a file may
    hold one row, or one row many times. `bound_beta` says how far off it can be. None where it depends on risks that are not shown or
    were not measured.
    """
    if safety["method"] in UNSTEERED or safety["method"] == "fixed_kl":
        return compute_row_beta(safety, None)
    values = list(scores.values())
    measured = [s for s in values if s is not None]
    if visibility == "none" or not measured or len(measured) < len(values):
        return None
    if visibility == "bucketed":
        measured = [(EDGES[bucket_of(s)] + EDGES[bucket_of(s) + 1]) / 2 for s in measured]
    if safety.get("scope") == "batch":
        beta = compute_row_beta(safety, mean(measured))
    else:
        beta = mean([compute_row_beta(safety, s) for s in measured])
    return beta if visibility == "full" else round(beta, 2)


def bound_beta(
    safety: Mapping[str, Any], distribution: Sequence[Mapping[str, Any]]
) -> tuple[float, float] | None:
    """Return between which numbers the mean KL weight lies for sure, from how many rows each bucket has.

    None where it does not depend on risks, or nothing was measured.
    """
    counts = [int(bucket["rows"]) for bucket in distribution]
    rows = sum(counts)
    if safety["method"] in UNSTEERED or safety["method"] == "fixed_kl" or not rows:
        return None
    if safety.get("scope") == "batch":
        lowest, highest = (
            math.fsum(s * count for s, count in zip(ends, counts, strict=True)) / rows
            for ends in (EDGES[:-1], EDGES[1:])
        )
        low, high = _span_betas(safety, lowest, highest)
    else:
        spans = [_span_betas(safety, *ends) for ends in pairwise(EDGES)]
        low, high = (
            math.fsum(span[end] * count for span, count in zip(spans, counts, strict=True)) / rows
            for end in (0, 1)
        )
    # Outwards, so that rounding excludes nothing.
    return math.floor(low * 100) / 100, math.ceil(high * 100) / 100


def _span_betas(safety: Mapping[str, Any], low: float, high: float) -> tuple[float, float]:
    """Return the least and the greatest KL weight of a row whose s lies between two numbers."""
    found = [low, high]
    threshold = safety.get("threshold")
    if isinstance(threshold, int | float) and low < threshold <= high:
        # Here the weight may jump either way: a replayed row has one of its own.
        found += [math.nextafter(threshold, 0.0), threshold]
    betas = [compute_row_beta(safety, s) for s in found]
    return min(betas), max(betas)
