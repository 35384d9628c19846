"""The control law: a row's risk becomes s, s becomes beta, beta becomes alpha (arXiv 2602.17546, per example).

Plain float64 functions of recorded numbers, so that an offline verifier computes the same bits.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def compute_s(log_odds: float, low: float, high: float) -> float:
    """Map a critic's calibrated log-odds linearly onto [0, 1] between the points `low` and `high`.

    `low` and `high` are chosen when the critic is fitted, for a stated false-positive rate and recall.
    """
    if not low < high or not math.isfinite(high - low):
        # An infinite span would make inf / inf, which is no number, a risk of 0.
        raise ValueError(f"low ({low}) must be below high ({high}), both finite")
    if math.isnan(log_odds):
        raise ValueError("log_odds is not a number; a critic that fails must say so by its status")
    return min(1.0, max(0.0, (log_odds - low) / (high - low)))


def compute_beta(
    s: float,
    *,
    beta_min: float,
    beta_max: float,
    schedule: str = "linear",
    threshold: float = 0.5,
    floor: float = 0.0,
) -> float:
    """Return the KL weight of a row: linear in s, or beta_max at and above `threshold`; never below `floor`."""
    if not 0.0 <= s <= 1.0:
        raise ValueError(f"s is {s}, outside [0, 1]")
    if schedule == "linear":
        beta = beta_min + (beta_max - beta_min) * s
    elif schedule == "threshold":
        beta = beta_max if s >= threshold else beta_min
    else:
        raise ValueError(f"unknown schedule {schedule!r}; known: linear, threshold")
    return raise_to_floor(beta, floor)


def raise_to_floor(beta: float, floor: float) -> float:
    """Return beta, or the run-level floor where that is higher. A floor that is not a number is refused."""
    if not 0.0 <= floor <= 1.0:
        raise ValueError(f"the floor is {floor}, outside [0, 1]")
    return max(beta, floor)


def compute_alpha(beta: float) -> float:
    """Return the weight of the task loss: alpha = 1 − beta."""
    return 1.0 - beta


def mean(values: Sequence[float]) -> float:
    """Return the mean by exact summation, so that the order of the values does not matter."""
    return math.fsum(values) / len(values)


def compute_row_beta(safety: Mapping[str, Any], s: float | None, floor: float = 0.0) -> float:
    """Return the KL weight that a resolved `safety` object gives a row of this s.

    `safety` is the wire form of `app.domain.training_spec.Safety`. `s` is None where nothing measured it,
    which only the methods that do not steer by it allow.
    """
    method = safety["method"]
    if method == "none":
        return raise_to_floor(0.0, floor)
    if method == "fixed_kl":
        return raise_to_floor(float(safety["beta"]), floor)
    if method != "adaptive_kl":
        raise ValueError(f"unknown method {method!r}; known: adaptive_kl, fixed_kl, none")
    if s is None:
        raise ValueError("adaptive_kl needs the s of every row")
    return compute_beta(
        s,
        beta_min=safety["beta_min"],
        beta_max=safety["beta_max"],
        schedule=safety["schedule"],
        threshold=safety["threshold"],
        floor=floor,
    )
