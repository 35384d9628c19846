"""Pruning: records whose bytes are gone and whose hashes stay, so that the tree over them is still the one that was signed.

What was pruned of a job is one canonical object, the *pruning*; the installation's log has its digest in the event
`job.pruned`, signed before any byte goes. A newer pruning says of all that is gone, not only of what it took itself.
Standard library only.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from app.domain.canonical import canonical_bytes, parse_canonical
from app.domain.installation_log import EVENT, check_leaf
from app.domain.leaf_schema import PRUNED_RECORD, PRUNING, PRUNING_LINE, Leaf, check_fields
from app.domain.merkle import RootBuilder, leaf_hash

PRUNED_EVENT = "job.pruned"
FLOOR_DAYS = 183
"""Six months: the least for which logs of an AI system are kept under Regulation (EU) 2024/1689, Art. 19(1) and 26(6)."""

STEPS, RECORDS = "steps", "records"
"""How much is pruned: the records of steps, or every record but the first and the last."""
STEP_KINDS = ("step", "live", "monitor")
_KEPT_KINDS = ("job.created", "job.end")


class PruningLine(NamedTuple):
    """What a bundle has of a pruning: the event in the installation's log, and what its digest is of."""

    at: int
    """The event's index in the log."""
    event: Leaf
    event_bytes: bytes
    proof: list[bytes]
    pruning: Leaf
    pruning_bytes: bytes


def is_pruned_in(scope: str, kind: str) -> bool:
    """Say whether a pruning of this scope takes records of this kind."""
    return kind in STEP_KINDS if scope == STEPS else kind not in _KEPT_KINDS


class PrunedTree:
    """The RFC 6962 tree over what is gone: each leaf is a record's seq, in 8 bytes big-endian, and its leaf hash."""

    def __init__(self) -> None:
        self._tree = RootBuilder()

    @property
    def size(self) -> int:
        """How many records are gone."""
        return self._tree.size

    def append(self, seq: int, digest: bytes) -> None:
        """Add the next record that is gone."""
        self._tree.append(leaf_hash(seq.to_bytes(8, "big") + digest))

    def root(self) -> str:
        """Return the root, in hex."""
        return self._tree.root().hex()


def build_pruning(*, job: str, scope: str, counts: Mapping[str, int], tree: PrunedTree) -> bytes:
    """Return the bytes of a pruning; `counts` says how many records of each kind are gone."""
    pruning = {
        "t": "tether.pruning/1",
        "job": job,
        "scope": scope,
        "records": tree.size,
        "counts": dict(counts),
        "root": tree.root(),
    }
    return canonical_bytes(check_fields("the pruning", pruning, PRUNING))


def parse_pruning(pruning: bytes) -> Leaf:
    """Return the fields of a pruning. Raises ValueError for bytes that are none."""
    return check_fields("the pruning", parse_canonical(pruning), PRUNING)


def digest_of_pruning(pruning: bytes) -> str:
    """Return the SHA-256 by which the event names a pruning."""
    return hashlib.sha256(pruning).hexdigest()


def format_pruned(digest: bytes) -> bytes:
    """Return the line that stands for a pruned record; no record can look like it, since each has nine other fields."""
    return canonical_bytes({"pruned": digest.hex()})


def parse_pruned(line: bytes) -> bytes | None:
    """Return the leaf hash of a line that stands for a pruned record; None for any other line."""
    # A long line is no such one, and is parsed by whoever knows what it is.
    if len(line) > 128:
        return None
    try:
        found: dict[str, Any] = check_fields("the line", parse_canonical(line), PRUNED_RECORD)
    except ValueError:
        return None
    return bytes.fromhex(found["pruned"])


def record_hash(line: bytes) -> bytes:
    """Return the leaf hash of a record, or of the one that a line of a hash stands for."""
    return parse_pruned(line) or leaf_hash(line)


def format_pruning_line(index: int, event: bytes, proof: Sequence[bytes], pruning: bytes) -> bytes:
    """Return the line of a pruning."""
    hashes = [each.hex() for each in proof]
    return canonical_bytes(
        {"index": index, "leaf": parse_canonical(event), "proof": hashes, "pruning": parse_canonical(pruning)}
    )


def parse_pruning_line(line: bytes) -> PruningLine:
    """Return what the line of a pruning says. Raises ValueError for one that is not such a line."""
    found = check_fields("the line", parse_canonical(line), PRUNING_LINE)
    event = check_leaf(found["leaf"])
    if event["t"] != EVENT:
        raise ValueError(f"the leaf is a {event['t']}; expected a {EVENT}")
    pruning = check_fields("the pruning", found["pruning"], PRUNING)
    # The form is canonical inside as well as outside, so that these are the bytes that were hashed.
    return PruningLine(
        at=found["index"],
        event=event,
        event_bytes=canonical_bytes(event),
        proof=[bytes.fromhex(each) for each in found["proof"]],
        pruning=pruning,
        pruning_bytes=canonical_bytes(pruning),
    )
