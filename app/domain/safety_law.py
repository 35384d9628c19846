"""The `safety` of a resolved spec as the control law reads it, when it comes from a record that may be nonsense.

Standard library only.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from app.domain.control_law import compute_s, compute_threshold, is_protected, measure_row
from app.domain.leaf_schema import Leaf
from app.domain.risk_table import RiskRow
from app.domain.verification import JobSoFar, ensured

Check = Callable[[object], bool]

_NUMBERS: dict[str, tuple[str, ...]] = {
    "adaptive_kl": ("beta_min", "beta_max", "threshold"),
    "fixed_kl": ("beta",),
    "filter": ("threshold",),
}
"""Shares that steer, by method. The threshold of adaptive_kl is one even where nothing uses it."""
_SHOWN = {
    **_NUMBERS,
    "constrained_sft": ("beta", "first_token_factor", "early_factor"),
    "vaccine": ("rho", "alignment_epochs"),
    "lisa": ("alignment_steps", "user_steps", "rho"),
    "antidote": ("density",),
    "safety_mix": ("share",),
    "none": (),
}


def law_of(job: JobSoFar) -> Leaf:
    """Return `safety` with its numbers as floats. Raises ValueError where one is missing or wild."""
    if job.law is None:
        job.law = _checked(ensured(job.spec)["safety"])
    return job.law


def describe_protection(job: JobSoFar) -> str:
    """Return by which method the job was trained, and whether that held the model to anything."""
    spec = job.spec or (job.created["spec"] if job.created else None)
    if spec is None:
        return "unknown: the record does not say by which method the job was trained"
    safety = spec["safety"]
    method = safety["method"]
    if not is_protected(safety):
        if method == "none":
            return "UNPROTECTED: method none, so nothing held the model to its reference"
        return f"UNPROTECTED: method {method}, but its beta is never above 0"
    if method not in _SHOWN:
        return f"{method}: not known to this verifier"
    parts = [method, *(f"{name} {safety.get(name)}" for name in _SHOWN[method])]
    if safety.get("replay"):
        parts.append("replay")
    if isinstance(safety.get("anchors"), dict):
        parts.append(f"anchors {safety['anchors'].get('per_step')} a step")
    if isinstance(safety.get("monitor"), dict):
        parts.append(
            f"monitor every {safety['monitor'].get('every')} steps: {safety['monitor'].get('action')}"
        )
    return ", ".join(parts)


def check_threshold(job: JobSoFar) -> None:
    """Raise ValueError unless a threshold that was left open became the critic's own."""
    asked, resolved = ensured(job.created)["spec"]["safety"], ensured(job.spec)["safety"]
    critic = ensured(job.created)["critic"]
    if asked.get("threshold") != "auto" or critic is None:
        return
    activation = None
    if critic["threshold"] is not None and critic["low"] is not None and critic["high"] is not None:
        activation = s_of_log_odds(critic["threshold"], critic, resolved)
    try:
        expected = compute_threshold(resolved["critic"], activation)
    except (ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(f"the spec's critic cannot be read: {error!r}") from error
    if resolved.get("threshold") != expected:
        raise ValueError(
            f"the threshold was left to the critic, whose own is {expected}; the spec has {resolved.get('threshold')!r}"
        )


def measure_recorded(critic: Mapping[str, Any], activation: float | None, row: RiskRow) -> tuple[str, float]:
    """Return the status and s that a judge or a combined critic of a spec gives a row. Raises ValueError."""
    try:
        return measure_row(critic, activation, row.votes)
    except (ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(f"the spec's critic cannot be read: {error!r}") from error


def s_of_log_odds(log_odds: float, points: Mapping[str, Any], safety: Mapping[str, Any]) -> float:
    """Return the s of an activation critic's reading between the recorded points."""
    if points["low"] is None or points["high"] is None:
        raise ValueError(f"log_odds is {log_odds}, but the critic has no points to read it by")
    return compute_s(
        float(log_odds), float(points["low"]), float(points["high"]), safety.get("s_scale", "points")
    )


def is_share(value: object) -> bool:
    """Tell whether a value of a record is a number from 0 to 1."""
    return _is_number(value) and 0 <= value <= 1  # type: ignore[operator]


def _checked(safety: Mapping[str, Any]) -> Leaf:
    method = safety["method"]
    if method not in _SHOWN:
        raise ValueError(f"the method {method} is not known; known: {', '.join(_SHOWN)}")
    law: Leaf = {**safety}
    for name in _NUMBERS.get(method, ()):
        law[name] = float(_expect(safety, name, is_share, "a number from 0 to 1"))
    if method == "adaptive_kl":
        _expect(safety, "schedule", _is_one_of("linear", "threshold"), "linear or threshold")
        # Records from before these fields existed do without them.
        law = {"scope": "example", "ema_decay": 0.0, "replay": False, **law}
        _expect(law, "scope", _is_one_of("example", "batch"), "example or batch")
        _expect(law, "ema_decay", is_share, "a number from 0 to 1")
        _expect(law, "replay", lambda value: isinstance(value, bool), "true or false")
    law["anchors"] = _part(safety, "anchors", _ANCHORS)
    law["monitor"] = _part(safety, "monitor", _MONITOR)
    return law


def _part(safety: Mapping[str, Any], name: str, checks: Mapping[str, tuple[Check, str]]) -> Leaf | None:
    value = safety.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"safety.{name} is {value!r}; expected an object or null")
    for field, (check, expected) in checks.items():
        _expect(value, field, check, expected, within=f"safety.{name}")
    return value


def _expect(value: Mapping[str, Any], name: str, check: Check, expected: str, within: str = "safety") -> Any:
    found = value.get(name)
    if not check(found):
        raise ValueError(f"{within}.{name} is {found!r}; expected {expected}")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_amount(value: object) -> bool:
    return _is_number(value) and value >= 0  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_one_of(*words: str) -> Check:
    return lambda value: isinstance(value, str) and value in words


_ANCHORS: dict[str, tuple[Check, str]] = {
    "weight": (_is_amount, "a number of at least 0"),
    "per_step": (_is_count, "an integer of at least 1"),
}
_MONITOR: dict[str, tuple[Check, str]] = {
    "every": (_is_count, "an integer of at least 1"),
    "limit": (_is_amount, "a number of at least 0"),
    "action": (_is_one_of("warn", "anchors", "floor"), "warn, anchors or floor"),
    "floor": (is_share, "a number from 0 to 1"),
}
