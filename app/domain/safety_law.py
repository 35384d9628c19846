"""The `safety` of a resolved spec as the control law reads it, when it comes from a record that may be nonsense.

Standard library only.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from app.domain.control_law import (
    Readings,
    Votes,
    compute_s,
    compute_threshold,
    fitted_ids,
    is_protected,
    measure_row,
)
from app.domain.leaf_schema import Leaf
from app.domain.learning_rate import lr_multiplier
from app.domain.risk_table import RiskRow
from app.domain.step_plan import Layout, total_steps
from app.domain.verification import Fitted, JobSoFar, ensured, is_same

Check = Callable[[object], bool]

MAX_COUNT = 65_535
"""Of rows in a step and passes over the data; the record of a step with more rows would not fit into a leaf."""
MAX_SHARE = 10
"""Alignment rows for each row of the user, at most."""

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
_COUNTS: dict[str, tuple[str, ...]] = {
    "vaccine": ("alignment_epochs",),
    "lisa": ("alignment_steps", "user_steps"),
}
"""Integers from 1 that decide which rows a step takes, by method."""


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
    try:
        protected = is_protected(safety)
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
        return f"unknown: what the record says of the method {method} cannot be read"
    if not protected:
        if method == "none":
            return "UNPROTECTED: method none, so nothing held the model to its reference"
        if method == "filter":
            return "UNPROTECTED: method filter without anchors, so nothing held the model on the rows that were left"
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


def check_fitted(job: JobSoFar) -> None:
    """Raise ValueError unless the risk table at hand was read by the fitted critics that job.created and spec name."""
    leaf, critic = job.body, ensured(job.spec)["safety"].get("critic")
    try:
        ids = fitted_ids(critic)
    except (ArithmeticError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the spec's critic cannot be read: {error!r}") from error
    if not all(each is None or isinstance(each, str) for each in ids):
        raise ValueError(f"the spec's critic cannot be read: it names {_list(ids)}")
    if job.begun_in < 4:
        # In those days a job had one fitted critic at most, whatever its spec called it.
        job.names = ((*ids, None),) * len(job.fitted)
    else:
        job.names = tuple((each,) for each in ids)
        created = tuple(each.id for each in job.fitted)
        if created != ids:
            raise ValueError(f"the spec reads with {_list(ids)}; the job was created with {_list(created)}")
    if job.version < 3:
        _check_points(leaf["low"], leaf["high"], job.fitted)
        return
    if len(leaf["fitted"]) != len(job.fitted):
        raise ValueError(f"{len(leaf['fitted'])} fitted critics; the job was created with {len(job.fitted)}")
    for found, expected in zip(leaf["fitted"], job.fitted, strict=True):
        for name in ("sha256", "low", "high"):
            value = getattr(expected, name)
            if not is_same(found[name], value) and not (name == "sha256" and value is None):
                raise ValueError(
                    f"the {name} of {expected.id} is {found[name]}; the job was created with {value}"
                )


def _check_points(low: float | None, high: float | None, fitted: tuple[Fitted, ...]) -> None:
    expected = (fitted[0].low, fitted[0].high) if fitted else (None, None)
    for name, value, created in zip(("low", "high"), (low, high), expected, strict=True):
        if not is_same(created, value):
            raise ValueError(f"the critic's {name} is {value}; the job was created with {created}")
    if (low is None) is not (high is None):
        raise ValueError("one of the critic's two points is missing")


def _list(ids: tuple[str | None, ...]) -> str:
    return ", ".join(map(str, ids)) or "no fitted critic"


def name_readings(row: RiskRow, job: JobSoFar) -> dict[str | None, float]:
    """Return the s of each reading of a row, by the ids that the spec has for its critic. Raises ValueError."""
    found: dict[str | None, float] = {}
    if not job.fitted and any(each is not None for each in row.log_odds):
        raise ValueError(f"log_odds is {row.log_odds[0]}, but the critic has no points to read it by")
    for log_odds, fitted, names in zip(row.log_odds, job.fitted, job.names, strict=False):
        if log_odds is not None:
            found |= dict.fromkeys(names, _s_of(log_odds, fitted, job))
    return found


def check_threshold(job: JobSoFar) -> None:
    """Raise ValueError unless a threshold that was left open became the critic's own. Comes after `check_fitted`."""
    asked, resolved = ensured(job.created)["spec"]["safety"], ensured(job.spec)["safety"]
    critic = ensured(job.created)["critic"]
    if "threshold" not in _NUMBERS.get(resolved["method"], ()):
        return
    if job.begun_in == 1 and asked.get("threshold") != "auto":
        # In those days a threshold that was left open was a constant of the program.
        return
    if asked.get("threshold") not in (None, "auto"):
        return
    if critic is None or job.begun_in == 1:
        raise ValueError("the threshold was left to the critic, but job.created has none of it")
    thresholds: dict[str | None, float] = {}
    for fitted, names in zip(job.fitted, job.names, strict=True):
        if fitted.threshold is not None:
            thresholds |= dict.fromkeys(names, _s_of(fitted.threshold, fitted, job))
    try:
        expected = compute_threshold(resolved["critic"], thresholds)
    except (ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(f"the spec's critic cannot be read: {error!r}") from error
    if resolved.get("threshold") != expected:
        raise ValueError(
            f"the threshold was left to the critic, whose own is {expected}; the spec has {resolved.get('threshold')!r}"
        )


def measure_recorded(critic: Mapping[str, Any], readings: Readings, votes: Votes) -> tuple[str, float]:
    """Return the status and s that a judge or a combined critic of a spec gives a row. Raises ValueError."""
    try:
        return measure_row(critic, readings, votes)
    except (ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(f"the spec's critic cannot be read: {error!r}") from error


def _s_of(log_odds: float, fitted: Fitted, job: JobSoFar) -> float:
    scale = ensured(job.spec)["safety"].get("s_scale", "points")
    return compute_s(float(log_odds), float(ensured(fitted.low)), float(ensured(fitted.high)), scale)


def is_share(value: object) -> bool:
    """Tell whether a value of a record is a number from 0 to 1."""
    return _is_number(value) and 0 <= value <= 1  # type: ignore[operator]


def layout_of(job: JobSoFar, *, n_rows: int, n_alignment: int) -> Layout:
    """Return what decides which rows a step takes. Raises ValueError where the spec does not say."""
    spec = ensured(job.spec)
    for name in ("batch_size", "n_epochs"):
        _expect(spec, name, _is_up_to(MAX_COUNT), f"an integer from 1 to {MAX_COUNT}", within="spec")
    _expect(spec, "seed", _is_integer, "an integer", within="spec")
    return Layout(n_rows, n_alignment, spec["batch_size"], spec["n_epochs"], spec["seed"])


def compute_lr(job: JobSoFar, layout: Layout, step: int) -> float:
    """Return the learning rate of a step by the spec. Raises ValueError where the spec does not say."""
    spec = ensured(job.spec)
    peak = _expect(spec, "learning_rate", _is_amount, "a number of at least 0", within="spec")
    warmup_ratio = _expect(spec, "warmup_ratio", is_share, "a number from 0 to 1", within="spec")
    kind = _expect(
        spec,
        "lr_scheduler",
        _is_one_of("constant", "linear", "cosine"),
        "constant, linear or cosine",
        within="spec",
    )
    n_steps = total_steps(law_of(job), layout)
    return float(peak * lr_multiplier(step, total_steps=n_steps, warmup_ratio=warmup_ratio, kind=kind))


def _checked(safety: Mapping[str, Any]) -> Leaf:
    method = safety["method"]
    if method not in _SHOWN:
        raise ValueError(f"the method {method} is not known; known: {', '.join(_SHOWN)}")
    law: Leaf = {**safety}
    for name in _NUMBERS.get(method, ()):
        law[name] = float(_expect(safety, name, is_share, "a number from 0 to 1"))
    for name in _COUNTS.get(method, ()):
        _expect(safety, name, _is_count, "an integer of at least 1")
    if method == "safety_mix":
        _expect(safety, "share", _is_mixing_share, f"a number from 0 to {MAX_SHARE}")
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


def _is_mixing_share(value: object) -> bool:
    return _is_number(value) and 0 <= value <= MAX_SHARE  # type: ignore[operator]


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_up_to(maximum: int) -> Check:
    return lambda value: _is_count(value) and isinstance(value, int) and value <= maximum


def _is_one_of(*words: str) -> Check:
    return lambda value: isinstance(value, str) and value in words


_ANCHORS: dict[str, tuple[Check, str]] = {
    "weight": (_is_amount, "a number of at least 0"),
    "per_step": (_is_count, "an integer of at least 1"),
}
_MONITOR: dict[str, tuple[Check, str]] = {
    "every": (_is_count, "an integer of at least 1"),
    "limit": (_is_amount, "a number of at least 0"),
    "action": (_is_one_of("warn", "anchors", "floor", "pause"), "warn, anchors, floor or pause"),
    "floor": (is_share, "a number from 0 to 1"),
}
