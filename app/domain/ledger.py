"""The record format: what a leaf of a job's ledger holds, and the risk table that a leaf commits to.

A leaf is the exact canonical bytes (RFC 8785) of one JSON object: a header that is the same for every type,
and a `body` whose fields the type fixes. Digests, numbers and identifiers only; text never enters. The format
is described for auditors in docs/ledger.md. Standard library only.
"""

import hashlib
import hmac
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.domain.canonical import NON_FINITE, canonical_bytes, encode_number, parse_canonical
from app.domain.control_law import compute_s
from app.domain.merkle import RootBuilder, leaf_hash

MAX_LEAF_BYTES = 65_535
"""An entry's length is a uint16 in C2SP's tlog-tiles."""
NO_LEAF = "0" * 64
"""The `prev` of a job's first leaf."""

Leaf = dict[str, Any]
Check = Callable[[object], str | None]
"""Returns what was expected where a value is wrong, None where it is right."""


# --- what a field may hold --------------------------------------------------------------------------------

_IDENTIFIER = re.compile(r"[A-Za-z0-9._:/+@=,~-]{1,256}", re.ASCII)
_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NOT_IDENTIFIER = re.compile(r"[^A-Za-z0-9._:/+@=,~-]+", re.ASCII)


def identifier(text: str) -> str:
    """Return a name, such as a device's, as a leaf may hold it: other characters become '-', cut at 256."""
    return _NOT_IDENTIFIER.sub("-", text)[:256] or "-"


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


def _is_share(value: object) -> str | None:
    return None if _is_number(value) is None and 0 <= value <= 1 else "a number from 0 to 1"  # type: ignore[operator]


def _is_integer(minimum: int) -> Check:
    def check(value: object) -> str | None:
        if isinstance(value, int) and not isinstance(value, bool) and value >= minimum:
            return None
        return f"an integer of at least {minimum}"

    return check


def _is_one_of(*words: str) -> Check:
    return lambda value: None if isinstance(value, str) and value in words else f"one of {', '.join(words)}"


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


def _is_object(fields: Mapping[str, Check]) -> Check:
    def check_object(value: object) -> str | None:
        try:
            _check_fields("it", value, fields)
        except ValueError as error:
            return f"an object in which {error}"
        return None

    return check_object


def _is_row_list(value: object) -> str | None:
    if isinstance(value, list) and value and all(_is_row(row) is None for row in value):
        return None
    return "a list of at least one row index"


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
_is_files = _is_map(_is_sha256)

_HEADER: dict[str, Check] = {
    "t": _is_identifier,
    "job": _is_identifier,
    "seq": _is_integer(0),
    "attempt": _is_integer(0),
    "epoch": _is_integer(0),
    "prev": _is_sha256,
    "ts_db": _is_integer(0),
    "ts_worker": _is_optional(_is_integer(0)),
    "body": _is_map(lambda _: None),
}

_ATTEMPT: dict[str, Check] = {
    "from_step": _is_integer(0),
    "checkpoint_sha256": _is_optional(_is_sha256),
    "spec": _is_spec,
    "environment": _is_map(_is_identifier),
    "device": _is_identifier,
}

BODIES: dict[str, dict[str, Check]] = {
    "tether.job.created/1": {
        "spec": _is_spec,
        "spec_sha256": _is_sha256,
        "training_sha256": _is_sha256,
        "training_rows": _is_optional(_is_integer(1)),
        "validation_sha256": _is_optional(_is_sha256),
        "base_model": _is_identifier,
        "base_model_sha256": _is_sha256,
        "critic": _is_optional(
            _is_object(
                {
                    "id": _is_identifier,
                    "sha256": _is_sha256,
                    "low": _is_optional(_is_number),
                    "high": _is_optional(_is_number),
                }
            )
        ),
        "policy_sha256": _is_sha256,
        "actor": _is_identifier,
    },
    "tether.job.start/1": _ATTEMPT,
    "tether.job.resume/1": _ATTEMPT,
    "tether.risk.table/1": {
        "rows": _is_integer(1),
        "dropped": _is_integer(0),
        "root": _is_sha256,
        "critic_sha256": _is_optional(_is_sha256),
        "low": _is_optional(_is_number),
        "high": _is_optional(_is_number),
        "counts": _is_object(
            dict.fromkeys(("ok", "failed", "constant", "unmeasured"), _is_integer(0)),
        ),
    },
    "tether.step/1": {
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
    },
    "tether.ckpt/1": {
        "step": _is_integer(0),
        "kind": _is_identifier,
        "sha256": _is_sha256,
        "files": _is_files,
    },
    "tether.cmd/1": {"command": _is_identifier, "actor": _is_identifier},
    "tether.adapter.published/1": {
        "step": _is_integer(0),
        "zip_sha256": _is_sha256,
        "bytes": _is_integer(1),
        "files": _is_files,
    },
    "tether.job.end/1": {
        "state": _is_one_of("succeeded", "failed", "cancelled"),
        "error": _is_optional(_is_identifier),
        "steps": _is_integer(0),
        "trained_tokens": _is_integer(0),
    },
}
"""Every known type and the fields of its body. A change to a type is a new version of it, never an edit."""


# --- leaves -----------------------------------------------------------------------------------------------


def build_leaf(
    kind: str,
    body: Mapping[str, object],
    *,
    job: str,
    seq: int,
    attempt: int,
    epoch: int,
    prev: str,
    ts_db: int,
    ts_worker: int | None = None,
) -> bytes:
    """Return the bytes of one leaf.

    `kind` is the type without its frame, such as "step" or "job.created". `epoch` is the fencing token of the
    appender, `prev` the hash of the job's previous leaf (`chain_hash`; `NO_LEAF` for the first), `ts_db` the
    database's clock in milliseconds, `ts_worker` the worker's. Non-finite numbers in `body` become words.
    Raises ValueError, naming the field, for anything that the type does not allow.
    """
    leaf = canonical_bytes(
        {
            "t": f"tether.{kind}/1",
            "job": job,
            "seq": seq,
            "attempt": attempt,
            "epoch": epoch,
            "prev": prev,
            "ts_db": ts_db,
            "ts_worker": ts_worker,
            "body": _encode(body),
        }
    )
    parse_leaf(leaf)
    return leaf


def parse_leaf(leaf: bytes) -> Leaf:
    """Return the object a leaf holds. Raises ValueError unless it is canonical and right for its type."""
    if len(leaf) > MAX_LEAF_BYTES:
        raise ValueError(f"the leaf has {len(leaf)} bytes; the longest allowed has {MAX_LEAF_BYTES}")
    record = _check_fields("the leaf", parse_canonical(leaf), _HEADER)
    if record["t"] not in BODIES:
        raise ValueError(f"the type {record['t']!r} is not known; known: {', '.join(BODIES)}")
    _check_fields("body", record["body"], BODIES[record["t"]])
    return record


def chain_hash(leaf: bytes) -> str:
    """Return the hash by which the next leaf names this one: RFC 6962's leaf hash, in hex."""
    return leaf_hash(leaf).hex()


def digest_of(value: object) -> str:
    """Return the SHA-256, in hex, of a value's canonical bytes.

    `spec_sha256` is the digest of the spec, a checkpoint's `sha256` that of its map from file to SHA-256.
    """
    return hashlib.sha256(canonical_bytes(value)).hexdigest()


def _encode(value: object) -> object:
    if isinstance(value, float):
        return encode_number(value)
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _check_fields(name: str, value: object, fields: Mapping[str, Check]) -> Leaf:
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


# --- the risk table ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RiskRow:
    """What the critic found about one row that is trained on."""

    row: int
    """Index in the training file. A row without an entry was dropped before training."""
    commitment: str
    """`row_commitment` of its tokens."""
    log_odds: float | None
    """The critic's calibrated reading; null unless status is ok."""
    s: float | None
    """The risk on [0, 1]; null only where nothing measured it."""
    status: str
    """ok, failed (no reading: s is 1), constant (s is the constant critic's), unmeasured (no critic)."""


_RISK_ROW: dict[str, Check] = {
    "row": _is_row,
    "commitment": _is_sha256,
    "log_odds": _is_optional(_is_number),
    "s": _is_optional(_is_share),
    "status": _is_one_of("ok", "failed", "constant", "unmeasured"),
}


def row_commitment(key: bytes, input_ids: Sequence[int], loss_mask: Sequence[int]) -> str:
    """Return the keyed digest, in hex, of what a row trains: its tokens and which of them bear loss (0 or 1).

    Keyed (HMAC-SHA256), so that nobody without the dataset's key can test guesses of the text against it.
    """
    if len(input_ids) != len(loss_mask):
        raise ValueError(f"{len(input_ids)} tokens with a loss mask of {len(loss_mask)}")
    if not key:
        raise ValueError("the key is empty, so that the commitment would hide nothing")
    mask = [int(bit) for bit in loss_mask]
    if not set(mask) <= {0, 1}:
        raise ValueError("a loss mask holds 0 and 1 only")
    message = canonical_bytes({"input_ids": [int(token) for token in input_ids], "loss_mask": mask})
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def measured_row(row: int, commitment: str, log_odds: float | None, *, low: float, high: float) -> RiskRow:
    """Return the entry of a row that a critic read. Without a finite reading the critic failed, and s is 1."""
    if log_odds is None or not math.isfinite(log_odds):
        return RiskRow(row, commitment, None, 1.0, "failed")
    return RiskRow(row, commitment, log_odds, compute_s(log_odds, low, high), "ok")


def constant_row(row: int, commitment: str, s: float) -> RiskRow:
    """Return the entry of a row under a constant critic."""
    return RiskRow(row, commitment, None, s, "constant")


def unmeasured_row(row: int, commitment: str) -> RiskRow:
    """Return the entry of a row in a job without a critic."""
    return RiskRow(row, commitment, None, None, "unmeasured")


def build_risk_table(
    rows: Iterable[RiskRow],
    *,
    dropped: int,
    critic_sha256: str | None,
    low: float | None,
    high: float | None,
) -> tuple[list[bytes], dict[str, object]]:
    """Return the canonical entries of a risk table and the body of the `risk.table` leaf that commits to them.

    The rows come in rising order of their index. `dropped` counts the rows of the training file that have no
    entry; `low` and `high` are the critic's points, None where it has none. Raises ValueError for an entry
    that the verifier would refuse.
    """
    builder = RootBuilder()
    entries: list[bytes] = []
    counts = dict.fromkeys(("ok", "failed", "constant", "unmeasured"), 0)
    last = -1
    for row in rows:
        entry = canonical_bytes(
            {
                "row": row.row,
                "commitment": row.commitment,
                "log_odds": row.log_odds,
                "s": row.s,
                "status": row.status,
            }
        )
        parsed = parse_risk_row(entry)
        if parsed.row <= last:
            raise ValueError(f"row {parsed.row} comes after row {last}; rows must rise")
        last = parsed.row
        counts[parsed.status] += 1
        builder.append(leaf_hash(entry))
        entries.append(entry)
    body: dict[str, object] = {
        "rows": len(entries),
        "dropped": dropped,
        "root": builder.root().hex(),
        "critic_sha256": critic_sha256,
        "low": low,
        "high": high,
        "counts": counts,
    }
    _check_fields("body", body, BODIES["tether.risk.table/1"])
    return entries, body


def parse_risk_row(entry: bytes) -> RiskRow:
    """Return what an entry of a risk table says. Raises ValueError where it is malformed or contradicts itself."""
    row = RiskRow(**_check_fields("the entry", parse_canonical(entry), _RISK_ROW))
    if (row.log_odds is None) is (row.status == "ok"):
        raise ValueError(
            f"status {row.status} with log_odds {row.log_odds}; ok has a reading, others have none"
        )
    if (row.s is None) is not (row.status == "unmeasured"):
        raise ValueError(f"status {row.status} with s {row.s}; only unmeasured rows have none")
    if row.status == "failed" and row.s != 1:
        raise ValueError(
            f"the critic failed, and s is {row.s}; missing evidence is maximal risk: s must be 1"
        )
    return row
