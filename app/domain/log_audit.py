"""Reading the whole of an installation's log, as an auditor does who trusts its keys and not its server.

What comes out holds for all that the log says, of every tenant: it is append-only since the checkpoint that the auditor
kept, its root is the one that is signed, and nothing in it contradicts itself. Standard library and cryptography.
"""

from collections.abc import Callable
from typing import NamedTuple

from app.domain.installation_log import HEAD, Checkpoint, parse_log_leaf
from app.domain.leaf_schema import Leaf
from app.domain.merkle import EMPTY_ROOT, RootBuilder, leaf_hash
from app.domain.note import VerifierKey
from app.domain.tiles import read_entries
from app.domain.trust import Trust, open_checkpoint

Fetch = Callable[[str], bytes]
"""Returns what the server has at a path of the log, such as `checkpoint`."""


class AuditFailed(ValueError):
    """The log is not what its signatures, or a checkpoint that was kept, say that it is."""


class Audited(NamedTuple):
    """What was found of one log."""

    checkpoint: Checkpoint
    note: bytes
    keys: tuple[VerifierKey, ...]
    """Which of the trusted keys signed it."""
    jobs: int
    events: dict[str, int]
    """How often each act stands in it."""
    since: int | None
    """Size of the checkpoint that it was held against."""


def audit_log(fetch: Fetch, trust: Trust, since: Checkpoint | None) -> Audited:
    """Read a log and hold it against its signature, itself, and an earlier checkpoint of it.

    Raises AuditFailed, naming what does not fit. `since` must be of the same log.
    """
    note = fetch("checkpoint")
    try:
        checkpoint, keys = open_checkpoint(note, trust)
    except ValueError as error:
        raise AuditFailed(f"the checkpoint: {error}") from error
    if since is not None and since.origin != checkpoint.origin:
        raise AuditFailed(
            f"the kept checkpoint is of the log {since.origin}, and this is the log {checkpoint.origin}"
        )
    if since is not None and since.size > checkpoint.size:
        raise AuditFailed(
            f"the log was rolled back: it has {checkpoint.size} leaves, and had {since.size} when the kept checkpoint was"
            " signed"
        )
    tree, seen = RootBuilder(), _Seen()
    old_root = EMPTY_ROOT
    try:
        for index, leaf in enumerate(read_entries(checkpoint.size, fetch)):
            seen.note(index, parse_log_leaf(leaf))
            tree.append(leaf_hash(leaf))
            if since is not None and tree.size == since.size:
                old_root = tree.root()
    except AuditFailed:
        raise
    except ValueError as error:
        raise AuditFailed(f"leaf {tree.size}: {error}") from error
    if tree.root() != checkpoint.root:
        raise AuditFailed(
            f"the {tree.size} leaves that the server gives have the root {tree.root().hex()}; signed is"
            f" {checkpoint.root.hex()}"
        )
    if since is not None and old_root != since.root:
        raise AuditFailed(
            f"a split view: the first {since.size} leaves have the root {old_root.hex()}, and {since.root.hex()} was signed"
            " over as many before. Keep both checkpoints: together they prove that the log was signed twice"
        )
    return Audited(
        checkpoint, note, keys, len(seen.heads), seen.events, None if since is None else since.size
    )


class _Seen:
    """What has been read of a log."""

    def __init__(self) -> None:
        self.heads: dict[str, tuple[int, int]] = {}
        """Index and size of each job's newest head."""
        self.events: dict[str, int] = {}

    def note(self, index: int, leaf: Leaf) -> None:
        if leaf["t"] != HEAD:
            self.events[leaf["event"]] = self.events.get(leaf["event"], 0) + 1
            return
        before, size = self.heads.get(leaf["job"], (None, 0))
        if leaf["previous"] != before:
            raise AuditFailed(
                f"leaf {index}: the head of {leaf['job']} names {leaf['previous']} as the one before; that is {before}"
            )
        if leaf["size"] <= size:
            raise AuditFailed(f"leaf {index}: the record of {leaf['job']} did not grow from {size}")
        self.heads[leaf["job"]] = (index, leaf["size"])
