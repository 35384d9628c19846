"""The installation's log: what its leaves hold, and the checkpoint over them (C2SP tlog-checkpoint.md).

One small RFC 6962 tree over the heads of all jobs' ledgers and the acts that concern no single job. A leaf is the
exact canonical bytes of one object. A checkpoint names the log, its size and its root; a notary signs it as a note. What an auditor of one
job gets is that job's heads, each with a proof that it is under the checkpoint. Standard library only.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from app.domain.canonical import canonical_bytes, parse_canonical
from app.domain.leaf_schema import HEAD_LINE, LOG_LEAVES, Leaf, check_fields
from app.domain.merkle import HASH_BYTES

HEAD, EVENT = LOG_LEAVES
RECEIPT = "c2sp.org/tlog-proof@v1"
FORK = "/fork-"
"""What divides the name of a log from the number of its fork, in the fork's origin."""


class Checkpoint(NamedTuple):
    """What a notary signs."""

    origin: str
    """Names the log; a fork of it has another origin."""
    size: int
    root: bytes
    """RFC 6962 root over the first `size` leaves."""


class HeadLine(NamedTuple):
    """A line of a bundle's heads: a leaf of the log, where it stands, and the proof that it is under a checkpoint."""

    at: int
    """Its index in the log."""
    leaf: Leaf
    leaf_bytes: bytes
    proof: list[bytes]


def build_head(*, job: str, size: int, root: str, state: str, previous: int | None, ts_db: int) -> bytes:
    """Return the leaf that says how a job's ledger stands: `root` over its first `size` records."""
    return _build(
        {
            "t": HEAD,
            "job": job,
            "size": size,
            "root": root,
            "state": state,
            "previous": previous,
            "ts_db": ts_db,
        }
    )


def build_event(
    event: str, *, actor: str | None, subject: str | None, sha256: str | None, ts_db: int
) -> bytes:
    """Return the leaf of an act: what was done by which key or part, to what, with which content."""
    return _build(
        {"t": EVENT, "event": event, "actor": actor, "subject": subject, "sha256": sha256, "ts_db": ts_db}
    )


def check_leaf(record: object) -> Leaf:
    """Return a leaf's fields. Raises ValueError unless they are right for its type."""
    kind = record.get("t") if isinstance(record, Mapping) else None
    if not isinstance(kind, str) or kind not in LOG_LEAVES:
        raise ValueError(f"the type of the log's leaf is {kind!r}; known: {', '.join(LOG_LEAVES)}")
    return check_fields("the log's leaf", record, LOG_LEAVES[kind])


def parse_log_leaf(leaf: bytes) -> Leaf:
    """Return the fields of a leaf's bytes. Raises ValueError unless they are canonical and right for its type."""
    return check_leaf(parse_canonical(leaf))


def format_head_line(index: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """Return the line of a head."""
    hashes = [each.hex() for each in proof]
    return canonical_bytes({"index": index, "leaf": parse_canonical(leaf), "proof": hashes})


def parse_head_line(line: bytes) -> HeadLine:
    """Return what a line of heads says. Raises ValueError for one that is not such a line."""
    found = check_fields("the line", parse_canonical(line), HEAD_LINE)
    leaf = check_leaf(found["leaf"])
    if leaf["t"] != HEAD:
        raise ValueError(f"the leaf is a {leaf['t']}; expected a {HEAD}")
    # The form is canonical inside as well as outside, so that these are the bytes that were hashed.
    return HeadLine(
        found["index"], leaf, canonical_bytes(leaf), [bytes.fromhex(each) for each in found["proof"]]
    )


def format_receipt(head: HeadLine, checkpoint_note: bytes) -> bytes:
    """Return a proof that a head is under a signed checkpoint, in the form of C2SP tlog-proof.md; its `extra` is the head.

    Whoever keeps it outside can show later what the log said, whatever becomes of the installation.
    """
    hashes = "".join(f"{base64.b64encode(each).decode()}\n" for each in head.proof)
    extra = base64.b64encode(head.leaf_bytes).decode()
    return f"{RECEIPT}\nextra {extra}\nindex {head.at}\n{hashes}\n".encode() + checkpoint_note


def parse_receipt(receipt: bytes) -> tuple[HeadLine, bytes]:
    """Return the head that a receipt is of, and the note of the checkpoint that it is under. Raises ValueError for any other form."""
    proof, _, note = receipt.partition(b"\n\n")
    header, extra, index, *hashes = [*proof.decode("ascii", "replace").split("\n"), "", ""]
    if header != RECEIPT or not extra.startswith("extra ") or not index.startswith("index "):
        raise ValueError(
            f"a receipt has the lines {RECEIPT}, extra and index, then hashes, and a note after an empty line"
        )
    leaf_bytes, at = _decode(extra.removeprefix("extra ")), index.removeprefix("index ")
    # The two lines that were added in case there were too few.
    proof_hashes = [_decode(line) for line in hashes[:-2]]
    leaf = parse_log_leaf(leaf_bytes)
    if leaf["t"] != HEAD:
        raise ValueError(f"the receipt is of a {leaf['t']}; expected a {HEAD}")
    return HeadLine(_parse_count("index of the receipt", at), leaf, leaf_bytes, proof_hashes), note


def format_checkpoint(checkpoint: Checkpoint) -> str:
    """Return the text that is signed: origin, size and Base64 root, a line each."""
    return f"{checkpoint.origin}\n{checkpoint.size}\n{base64.b64encode(checkpoint.root).decode()}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """Return what a checkpoint's text says. Raises ValueError for a text that is not one; lines after the third are extensions."""
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
        raise ValueError("a checkpoint is three lines or more, none of them empty: origin, size, root")
    origin, size, encoded = lines[:3]
    root = _decode(encoded)
    if len(root) != HASH_BYTES:
        raise ValueError(
            f"the root of the checkpoint is {encoded[:80]!r}, which is no Base64 of {HASH_BYTES} bytes"
        )
    return Checkpoint(origin, _parse_count("size of the checkpoint", size), root)


def forked_from(origin: str) -> str | None:
    """Return the name of the log that this one is a fork of; None where it is none."""
    name, divider, _ = origin.rpartition(FORK)
    return name if divider else None


def _parse_count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15) or (text != "0" and text.startswith("0")):
        raise ValueError(f"the {name} is {text[:40]!r}, which is no whole number")
    return int(text)


def _decode(text: str) -> bytes:
    """Return what Base64 stands for; nothing unless it is written exactly as it would be encoded."""
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return value if base64.b64encode(value).decode() == text else b""


def _build(record: dict[str, Any]) -> bytes:
    return canonical_bytes(check_leaf(record))
