"""The record format: what a leaf of a job's ledger holds.

A leaf is the exact canonical bytes (RFC 8785) of one JSON object: a header that is the same for every type,
and a `body` whose fields the type fixes. Digests, numbers and identifiers only; text never enters. The format
is described for auditors in docs/ledger.md. Standard library only.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from app.domain.canonical import canonical_bytes, encode_number, parse_canonical
from app.domain.leaf_schema import BODIES, HEADER, IDENTIFIER_CHARACTERS, NEWEST, Leaf, check_fields
from app.domain.merkle import leaf_hash

MAX_LEAF_BYTES = 65_535
"""An entry's length is a uint16 in C2SP's tlog-tiles."""
NO_LEAF = "0" * 64
"""The `prev` of a job's first leaf."""

_NOT_IDENTIFIER = re.compile(rf"[^{IDENTIFIER_CHARACTERS}]+", re.ASCII)


def identifier(text: str) -> str:
    """Return a name, such as a device's, as a leaf may hold it: other characters become '-', cut at 256."""
    return _NOT_IDENTIFIER.sub("-", text)[:256] or "-"


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

    `kind` is the type without its frame, such as "step" or "job.created", written in its newest version; "step/1" is
    that version. `epoch` is the fencing token of the
    appender, `prev` the hash of the job's previous leaf (`chain_hash`; `NO_LEAF` for the first), `ts_db` the
    database's clock in milliseconds, `ts_worker` the worker's. Non-finite numbers in `body` become words.
    Raises ValueError, naming the field, for anything that the type does not allow.
    """
    name = f"tether.{kind}"
    leaf = canonical_bytes(
        {
            "t": name if "/" in name else NEWEST.get(name, f"{name}/1"),
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
    record = check_fields("the leaf", parse_canonical(leaf), HEADER)
    if record["t"] not in BODIES:
        raise ValueError(f"the type {record['t']!r} is not known; known: {', '.join(BODIES)}")
    check_fields("body", record["body"], BODIES[record["t"]])
    return record


def kind_of(record: Mapping[str, Any]) -> str:
    """Return the type of a record without its frame, such as "step"."""
    return str(record["t"]).removeprefix("tether.").partition("/")[0]


def peek_kind(leaf: bytes) -> str:
    """Return the type of a leaf that is known to be one, as `kind_of` does, without reading the rest of it.

    Of what stands behind the body in canonical order, only the type is a word called `t`. Empty for what is no whole record.
    """
    _, is_there, found = leaf.rpartition(b'"t":"tether.')
    return found.partition(b"/")[0].decode("ascii", "replace") if is_there else ""


def version_of(record: Mapping[str, Any]) -> int:
    """Return the version of a record's type."""
    return int(str(record["t"]).rpartition("/")[2])


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
