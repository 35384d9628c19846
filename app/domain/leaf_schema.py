"""What a field may hold, in a leaf of a job's ledger, in an entry of its risk table, in a leaf of the installation's log.

Digests, numbers and identifiers only; text never enters. Standard library only.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from app.domain.canonical import NON_FINITE
from app.domain.gate import ACTIONS, START_VERDICTS, VERDICTS

Leaf = dict[str, Any]
Check = Callable[[object], str | None]
"""Returns what was expected where a value is wrong, None where it is right."""

IDENTIFIER_CHARACTERS = "A-Za-z0-9._:/+@=,~-"
"""As they stand between the brackets of a regular expression."""

_IDENTIFIER = re.compile(rf"[{IDENTIFIER_CHARACTERS}]{{1,256}}", re.ASCII)
_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def _is_identifier(value: object) -> str | None:
    if isinstance(value, str) and _IDENTIFIER.fullmatch(value):
        return None
    return "an identifier (1 to 256 of A-Z a-z 0-9 . _ : / + @ = , ~ -)"


def _is_sha256(value: object) -> str | None:
    return None if isinstance(value, str) and _HEX64.fullmatch(value) else "64 lower-case hex digits"


def _is_number(value: object) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return None
    return "a number"


def _is_any_number(value: object) -> str | None:
    if _is_number(value) is None or (isinstance(value, str) and value in NON_FINITE):
        return None
    return f"a number, or one of {', '.join(NON_FINITE)}"


def _is_amount(value: object) -> str | None:
    return None if _is_number(value) is None and value >= 0 else "a number of at least 0"  # type: ignore[operator]


def _is_share(value: object) -> str | None:
    return None if _is_number(value) is None and 0 <= value <= 1 else "a number from 0 to 1"  # type: ignore[operator]


def _is_integer(minimum: int, maximum: int | None = None) -> Check:
    expected = (
        f"an integer of at least {minimum}" if maximum is None else f"an integer from {minimum} to {maximum}"
    )

    def check(value: object) -> str | None:
        if isinstance(value, int) and not isinstance(value, bool) and value >= minimum:
            return None if maximum is None or value <= maximum else expected
        return expected

    return check


def _is_bool(value: object) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _is_one_of(*words: str) -> Check:
    return lambda value: None if isinstance(value, str) and value in words else f"one of {', '.join(words)}"


def _is_one_of_numbers(*numbers: int) -> Check:
    expected = f"one of {', '.join(map(str, numbers))}"
    return lambda value: (
        None if isinstance(value, int) and not isinstance(value, bool) and value in numbers else expected
    )


def _is_optional(check: Check) -> Check:
    def optional(value: object) -> str | None:
        expected = None if value is None else check(value)
        return expected and f"{expected}, or null"

    return optional


def _is_map(check: Check) -> Check:
    def check_map(value: object) -> str | None:
        if not isinstance(value, dict):
            return "an object"
        for key, item in value.items():
            expected = _is_identifier(key) or check(item)
            if expected:
                return f"an object from identifiers to values each {expected}"
        return None

    return check_map


def _is_some_object(value: object) -> str | None:
    """Accept an object whose fields are checked apart, because they depend on others."""
    return None if isinstance(value, dict) else "an object"


def _is_object(fields: Mapping[str, Check]) -> Check:
    def check_object(value: object) -> str | None:
        try:
            check_fields("it", value, fields)
        except ValueError as error:
            return f"an object in which {error}"
        return None

    return check_object


def _is_row_list(value: object) -> str | None:
    return _is_list(_is_row)(value) if value else "a list of at least one row index"


def _is_list(check: Check) -> Check:
    def check_list(value: object) -> str | None:
        if not isinstance(value, list):
            return "a list"
        expected = next(filter(None, map(check, value)), None)
        return expected and f"a list of values each {expected}"

    return check_list


def _is_plain(value: object) -> str | None:
    """Accept a tree of objects and lists over identifiers, numbers, booleans and null."""
    if value is None or isinstance(value, bool | int | float):
        return None
    if isinstance(value, list):
        return next(filter(None, map(_is_plain, value)), None)
    if isinstance(value, dict):
        return next(filter(None, map(_is_identifier, value)), None) or _is_plain(list(value.values()))
    return _is_identifier(value)


def _is_spec(value: object) -> str | None:
    if isinstance(value, dict) and isinstance(value.get("safety"), dict):
        method = value["safety"].get("method")
        return _is_plain(value) or (_is_identifier(method) and "an object whose safety.method is a word")
    return "an object with an object `safety`"


_is_row = _is_integer(0)
_is_votes = _is_list(_is_list(_is_optional(_is_one_of_numbers(1, 2, 3, 4, 5))))
_is_files = _is_map(_is_sha256)

HEADER: dict[str, Check] = {
    "t": _is_identifier,
    "job": _is_identifier,
    "seq": _is_integer(0),
    "attempt": _is_integer(0),
    "epoch": _is_integer(0),
    "prev": _is_sha256,
    "ts_db": _is_integer(0),
    "ts_worker": _is_optional(_is_integer(0)),
    "body": _is_some_object,
}

_ATTEMPT: dict[str, Check] = {
    "from_step": _is_integer(0),
    "checkpoint_sha256": _is_optional(_is_sha256),
    "spec": _is_spec,
    "environment": _is_map(_is_identifier),
    "device": _is_identifier,
}

_CREATED: dict[str, Check] = {
    "spec": _is_spec,
    "spec_sha256": _is_sha256,
    "training_sha256": _is_sha256,
    "training_rows": _is_optional(_is_integer(1)),
    "validation_sha256": _is_optional(_is_sha256),
    "base_model": _is_identifier,
    "base_model_sha256": _is_sha256,
    "policy_sha256": _is_sha256,
    "actor": _is_identifier,
}
_CRITIC: dict[str, Check] = {
    "id": _is_identifier,
    "sha256": _is_sha256,
    "low": _is_optional(_is_number),
    "high": _is_optional(_is_number),
}
_NAMED: dict[str, Check] = {"id": _is_identifier, "sha256": _is_sha256}
_POINTS: dict[str, Check] = {"sha256": _is_sha256, "low": _is_number, "high": _is_number}
_PARENT: dict[str, Check] = {
    "job": _is_identifier,
    "step": _is_integer(1),
    "adapter_sha256": _is_sha256,
}
_NAMED_ROW: dict[str, Check] = {"row": _is_row, "commitment": _is_sha256}
_PARTS: dict[str, Check] = dict.fromkeys(("trained", "monitored"), _is_list(_is_object(_NAMED_ROW)))

MAX_ALIGNMENT_ROWS = 1_000_000
"""So that nobody can make a verifier put more rows in order than a set can have."""

STATUSES = ("ok", "failed", "constant", "unmeasured", "judged", "fallback")
"""What can become of a row's measurement. Tables of version 1 know the first four."""
TREATMENTS = ("own", "replay", "drop")

_RISK_TABLE: dict[str, Check] = {
    "rows": _is_integer(1),
    "dropped": _is_integer(0),
    "root": _is_sha256,
    "critic_sha256": _is_optional(_is_sha256),
}
_TWO_POINTS: dict[str, Check] = {"low": _is_optional(_is_number), "high": _is_optional(_is_number)}
_COUNTS: dict[str, Check] = {
    "counts": _is_object(dict.fromkeys(STATUSES, _is_integer(0))),
    "treatments": _is_object(dict.fromkeys(TREATMENTS, _is_integer(0))),
}
_LIVE_SCORE: dict[str, Check] = {
    "row": _is_row,
    "s": _is_share,
    "status": _is_one_of("judged", "fallback", "failed"),
    "votes": _is_votes,
    "asked_at": _is_integer(1),
    "reference_votes": _is_votes,
}
_LIMIT: dict[str, Check] = {
    "limit": _is_identifier,
    "found": _is_optional(_is_number),
    "bound": _is_number,
    "action": _is_one_of(*ACTIONS),
    "beta_min": _is_optional(_is_share),
    "broken": _is_bool,
}
_GATE: dict[str, Check] = {"policy_sha256": _is_sha256, "limits": _is_list(_is_object(_LIMIT))}
_STEP: dict[str, Check] = {
    "step": _is_integer(1),
    "data_epoch": _is_integer(0),
    "rows": _is_row_list,
    "tokens": _is_integer(0),
    "risk_mean": _is_optional(_is_share),
    "risk_max": _is_optional(_is_share),
    "alpha_mean": _is_share,
    "alpha_min": _is_share,
    "beta_mean": _is_share,
    "beta_max": _is_share,
    "floor": _is_share,
    "nll": _is_any_number,
    "kl": _is_any_number,
    "loss": _is_any_number,
    "token_accuracy": _is_any_number,
    "grad_norm": _is_any_number,
    "lr": _is_any_number,
    "critic_sha256": _is_optional(_is_sha256),
    "policy_sha256": _is_sha256,
}
_MEASURE: dict[str, Check] = {
    "value": _is_optional(_is_number),
    "low": _is_optional(_is_number),
    "high": _is_optional(_is_number),
    "n": _is_integer(0),
    "count": _is_optional(_is_integer(0)),
}
_COMPARISON: dict[str, Check] = {
    "name": _is_identifier,
    "judge": _is_optional(_is_identifier),
    "before": _is_object(_MEASURE),
    "after": _is_object(_MEASURE),
    "difference": _is_object(_MEASURE),
    "samples": _is_optional(_is_integer(1)),
    "correlation": _is_optional(_is_number),
    "unjudged": _is_integer(0),
}
_AGREEMENT: dict[str, Check] = {
    "first": _is_identifier,
    "second": _is_identifier,
    "decoding": _is_identifier,
    "agreed": _is_integer(0),
    "of": _is_integer(0),
}
_DECODING: dict[str, Check] = {
    "greedy": _is_bool,
    "samples": _is_integer(0),
    "prefill_sha256": _is_optional(_is_sha256),
    "prefixes": _is_integer(0),
    "max_new_tokens": _is_integer(1),
    "seed": _is_integer(0),
}
_EVALUATION: dict[str, Check] = {
    "suite": _is_identifier,
    "suite_sha256": _is_sha256,
    "prompts": _is_object(dict.fromkeys(("harmful", "borderline", "utility"), _is_integer(0))),
    "judges": _is_list(_is_object({"type": _is_identifier, "sha256": _is_sha256})),
    "decoding": _is_object(_DECODING),
    "comparisons": _is_list(_is_object(_COMPARISON)),
    "agreements": _is_list(_is_object(_AGREEMENT)),
}
_BASE: dict[str, Check] = {
    "name": _is_identifier,
    "revision": _is_optional(_is_identifier),
    "sha256": _is_sha256,
}
_CANARY: dict[str, Check] = {
    "prompt_ids": _is_list(_is_integer(0)),
    "continuation_ids": _is_list(_is_integer(0)),
    "tuned": _is_list(_is_number),
    "base": _is_list(_is_number),
}
_COMPUTE: dict[str, Check] = {
    "parameters": _is_integer(1),
    "adapter_parameters": _is_integer(1),
    "layers": _is_integer(1),
    "hidden_size": _is_integer(1),
    "reference_tokens": _is_integer(0),
    "reference_squares": _is_integer(0),
    "training_tokens": _is_integer(0),
    "training_squares": _is_integer(0),
}

BODIES: dict[str, dict[str, Check]] = {
    "tether.job.created/1": _CREATED | {"critic": _is_optional(_is_object(_CRITIC))},
    "tether.job.created/2": _CREATED
    | {
        "critic": _is_optional(_is_object(_CRITIC | {"threshold": _is_optional(_is_number)})),
        "anchors": _is_optional(_is_object(_NAMED)),
        "alignment": _is_optional(_is_object(_NAMED)),
    },
    "tether.job.created/3": _CREATED
    | {
        "critic": _is_optional(_is_object(_CRITIC | {"threshold": _is_optional(_is_number)})),
        "anchors": _is_optional(_is_object(_NAMED)),
        "alignment": _is_optional(_is_object(_NAMED)),
        "parent": _is_optional(_is_object(_PARENT)),
    },
    "tether.job.created/4": _CREATED
    | {
        "critic": _is_optional(
            _is_object(
                _NAMED
                | {"fitted": _is_list(_is_object(_NAMED | _POINTS | {"threshold": _is_optional(_is_number)}))}
            )
        ),
        "anchors": _is_optional(_is_object(_NAMED)),
        "alignment": _is_optional(_is_object(_NAMED)),
        "parent": _is_optional(_is_object(_PARENT)),
    },
    "tether.job.start/1": _ATTEMPT,
    "tether.job.start/2": _ATTEMPT | {"micro_batch_tokens": _is_integer(1)},
    "tether.job.resume/1": _ATTEMPT,
    "tether.job.resume/2": _ATTEMPT | {"micro_batch_tokens": _is_integer(1)},
    "tether.risk.table/1": _RISK_TABLE
    | _TWO_POINTS
    | {"counts": _is_object(dict.fromkeys(STATUSES[:4], _is_integer(0)))},
    "tether.risk.table/2": _RISK_TABLE | _TWO_POINTS | _COUNTS,
    "tether.risk.table/3": _RISK_TABLE | _COUNTS | {"fitted": _is_list(_is_object(_POINTS))},
    "tether.anchors/1": _NAMED | _PARTS,
    "tether.anchors/2": _NAMED | _PARTS | {"rows": _is_integer(8, 256)},
    "tether.alignment/1": _NAMED | {"rows": _is_integer(1)},
    "tether.alignment/2": _NAMED | {"rows": _is_integer(1, MAX_ALIGNMENT_ROWS), "dropped": _is_list(_is_row)},
    "tether.step/1": _STEP,
    "tether.step/2": _STEP
    | {
        "rows": _is_list(_is_row),
        "kl": _is_optional(_is_any_number),
        "s_smoothed": _is_optional(_is_share),
        "anchors": _is_list(_is_row),
        "anchor_kl": _is_optional(_is_any_number),
        "anchor_weight": _is_amount,
        "alignment_rows": _is_list(_is_row),
        "skipped": _is_bool,
    },
    "tether.monitor/1": {
        "step": _is_integer(1),
        "kl": _is_any_number,
        "floor": _is_share,
        "anchor_factor": _is_amount,
    },
    "tether.live/1": {"step": _is_integer(2), "scores": _is_list(_is_object(_LIVE_SCORE))},
    "tether.ckpt/1": {
        "step": _is_integer(0),
        "kind": _is_one_of("interval", "epoch", "preempt"),
        "sha256": _is_sha256,
        "files": _is_files,
    },
    "tether.ckpt/2": {
        "step": _is_integer(0),
        "kind": _is_one_of("interval", "epoch", "preempt"),
        "sha256": _is_sha256,
        "files": _is_files,
        "adapter_sha256": _is_optional(_is_sha256),
    },
    "tether.ckpt.invalid/1": {
        "step": _is_integer(1),
        "sha256": _is_sha256,
        "why": _is_one_of("missing", "changed", "unreadable"),
    },
    "tether.cmd/1": {"command": _is_identifier, "actor": _is_identifier},
    "tether.eval/1": _EVALUATION | {"step": _is_integer(0)},
    "tether.gate.start/1": _GATE | {"verdict": _is_one_of(*START_VERDICTS), "floor": _is_share},
    "tether.gate/1": _GATE | {"verdict": _is_one_of(*VERDICTS)},
    "tether.adapter.published/1": {
        "step": _is_integer(0),
        "zip_sha256": _is_sha256,
        "bytes": _is_integer(1),
        "files": _is_files,
    },
    "tether.adapter.published/2": {
        "step": _is_integer(0),
        "zip_sha256": _is_sha256,
        "bytes": _is_integer(1),
        "files": _is_files,
        "base": _is_object(_BASE),
        "canary": _is_object(_CANARY),
        "compute": _is_object(_COMPUTE),
    },
    "tether.job.end/1": {
        "state": _is_one_of("succeeded", "failed", "cancelled"),
        "error": _is_optional(_is_identifier),
        "steps": _is_integer(0),
        "trained_tokens": _is_integer(0),
    },
}
"""Every known type and the fields of its body. A change to a type is a new version of it, never an edit."""

NEWEST = {name.partition("/")[0]: name for name in sorted(BODIES)}
"""The version in which a type is written, by its name without one."""

_RISK_ROW: dict[str, Check] = {
    "row": _is_row,
    "commitment": _is_sha256,
    "s": _is_optional(_is_share),
}
_READING: dict[str, Check] = {"log_odds": _is_optional(_is_number)}
_TREATED_ROW = _RISK_ROW | {
    "status": _is_one_of(*STATUSES),
    "votes": _is_votes,
    "treatment": _is_one_of(*TREATMENTS),
    "replay": _is_optional(_is_sha256),
}
RISK_ROWS: dict[int, dict[str, Check]] = {
    1: _RISK_ROW | _READING | {"status": _is_one_of(*STATUSES[:4])},
    2: _TREATED_ROW | _READING,
    3: _TREATED_ROW | {"log_odds": _is_list(_is_optional(_is_number))},
}
"""The fields of an entry of the risk table, by the version of the table."""


LOG_LEAVES: dict[str, dict[str, Check]] = {
    "tether.log.head/1": {
        "t": _is_identifier,
        "job": _is_identifier,
        "size": _is_integer(1),
        "root": _is_sha256,
        "state": _is_identifier,
        "previous": _is_optional(_is_integer(0)),
        "ts_db": _is_integer(0),
    },
    "tether.log.event/1": {
        "t": _is_identifier,
        "event": _is_identifier,
        "actor": _is_optional(_is_identifier),
        "subject": _is_optional(_is_identifier),
        "sha256": _is_optional(_is_sha256),
        "ts_db": _is_integer(0),
    },
}
"""What a leaf of the installation's log holds, by type. `previous` is the index of the job's previous head in the log."""

HEAD_LINE: dict[str, Check] = {
    "index": _is_integer(0),
    "leaf": _is_map(lambda _: None),
    "proof": _is_list(_is_sha256),
}
"""What a bundle holds of a head in that log."""

TOKENS: dict[str, Check] = {
    "row": _is_row,
    "input_ids": _is_list(_is_integer(0)),
    "loss_mask": _is_list(_is_one_of_numbers(0, 1)),
}
"""A row of a training file, as its commitment has it."""
PRUNED_RECORD: dict[str, Check] = {"pruned": _is_sha256}
"""What stands in a bundle for a record of which only the hash is left."""
PRUNING: dict[str, Check] = {
    "t": _is_one_of("tether.pruning/1"),
    "job": _is_identifier,
    "scope": _is_one_of("steps", "records"),
    "records": _is_integer(1),
    "counts": _is_map(_is_integer(1)),
    "root": _is_sha256,
}
"""What was pruned of a job; the log has its digest."""
PRUNING_LINE: dict[str, Check] = HEAD_LINE | {"pruning": _is_map(lambda _: None)}
"""What a bundle holds of a pruning."""


def check_fields(name: str, value: object, fields: Mapping[str, Check]) -> Leaf:
    """Return `value` where it is an object of exactly these fields. Raises ValueError, naming the wrong one."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    for field, check in fields.items():
        if field not in value:
            raise ValueError(f"{name} has no {field!r}")
        expected = check(value[field])
        if expected:
            raise ValueError(f"{name}.{field} is {_show(value[field])}; expected {expected}")
    if len(value) > len(fields):
        raise ValueError(f"{name} has the unknown field {_show(min(set(value) - set(fields)))}")
    return value


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
