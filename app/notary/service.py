"""The notary's round: heads and acts into the log, then a signature over it.

The order is what makes it a witness: leaves are committed; what is about to be signed goes to the notary's own file; only
then is there a signature. So that after any crash the file is at or ahead of every signature, and never behind.
"""

import logging
import math
import secrets
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.audit.repository import iterate_leaves
from app.database import Database, read_only, unit_of_work
from app.domain.installation_log import Checkpoint, build_head, format_checkpoint
from app.domain.job import RECORDED
from app.domain.merkle import RootBuilder, leaf_hash
from app.domain.note import sign_note, verifier_key
from app.errors import ConfigurationError, NotaryRefuses
from app.models.base import new_id, now_ms, utc_now
from app.models.installation_log import InstallationLog, LogCheckpoint, LogHead, LogLeaf
from app.notary import keyfile, repository
from app.settings import Settings
from app.work.repository import record_worker

log = logging.getLogger(__name__)

POLL_S = 0.5
NOTARY = "notary"
"""What it is called among the processes that say that they live."""
SIGN_OF_LIFE_S = 5.0
AFTER_REFUSAL_S = 5.0
OPERATOR_AT_THE_MACHINE = "command-line"
SWEEP_S = 600.0
"""Jobs that ended long ago are looked at this often, for the case that one was missed."""


class Notary:
    """A notary that has checked its memory against the database, and goes on from there."""

    def __init__(self, database: Database, settings: Settings) -> None:
        """Read key and memory, and replay the log. Raises NotaryRefuses where the two contradict each other."""
        self._database = database
        self._settings = settings
        self._folder: Path = settings.notary_dir
        keyfile.make_folder(self._folder)
        self._key: Ed25519PrivateKey = keyfile.load_key(self._folder)
        self._tree = RootBuilder()
        self._swept_at = -math.inf
        self._ledgers: dict[str, RootBuilder] = {}
        """The trees of jobs that have not ended, so that a head costs only the records since the last one."""
        with unit_of_work(database) as session:
            repository.lock_log(session)
            self._log = self._open(session)

    def _open(self, session: Session) -> InstallationLog:
        last, found = keyfile.load_last(self._folder), repository.get_log(session)
        if found is None and last is None:
            found = repository.add_log(session, self._settings.log_origin or f"tether/{secrets.token_hex(8)}")
        if found is None or (last is not None and found.origin != last.origin):
            raise NotaryRefuses(
                f"the notary last signed the log {last.origin if last else '?'}; the database has"
                f" {found.origin if found else 'none'}. Put the database back that belongs to {self._folder}, or open a new log"
                " with: tether log fork"
            )
        if last is None and repository.get_checkpoint(session, found.number) is not None:
            raise NotaryRefuses(
                f"the log {found.origin} was signed before, and {self._folder} does not know what was signed last. Put that"
                " folder back, or open a new log with: tether log fork"
            )
        for leaf in repository.iterate_log(session, found.number):
            self._tree.append(leaf_hash(leaf))
            if last is not None and self._tree.size == last.size and self._tree.root() != last.root:
                raise _contradicted(last, "has another root at that size")
        if last is not None and self._tree.size < last.size:
            raise _contradicted(last, f"has {self._tree.size} leaves")
        return found

    def attend(self) -> int:
        """Do one round; return how many leaves are new. Raises NotaryRefuses where somebody else changed the log."""
        with unit_of_work(self._database) as session:
            repository.lock_log(session)
            self._catch_up(session)
            new = self._sequence(session)
        self._sign()
        return new

    def _catch_up(self, session: Session) -> None:
        """Read what another notary of the same installation added."""
        newest = repository.get_log(session)
        if newest is None or newest.number != self._log.number:
            raise NotaryRefuses("the log was forked while this notary ran; it goes on with the new one")
        size = repository.count_leaves(session, self._log.number)
        if size < self._tree.size:
            raise NotaryRefuses(
                f"the log {self._log.origin} had {self._tree.size} leaves and now has {size}: the database was rolled back"
            )
        for leaf in repository.iterate_log(session, self._log.number, start=self._tree.size):
            self._tree.append(leaf_hash(leaf))

    def _sequence(self, session: Session) -> int:
        number, start = self._log.number, self._tree.size
        events = repository.list_pending_events(session)
        leaves = [event.leaf for event in events]
        repository.mark_sequenced(session, events, number)
        ts_db = session.scalars(select(now_ms())).one()
        heads = []
        for due in self._list_due(session):
            heads.append(
                {
                    "log": number,
                    "work_id": due.work_id,
                    "size": due.size,
                    "index": start + len(leaves),
                    "made_at_ms": ts_db,
                }
            )
            leaves.append(
                build_head(
                    job=due.work_id,
                    size=due.size,
                    root=self._root_of(session, due).hex(),
                    state=due.state,
                    previous=due.previous,
                    ts_db=ts_db,
                )
            )
        if leaves:
            rows = [{"log": number, "index": start + at, "leaf": leaf} for at, leaf in enumerate(leaves)]
            session.execute(insert(LogLeaf), rows)
        if heads:
            session.execute(insert(LogHead), heads)
        session.flush()
        for leaf in leaves:
            self._tree.append(leaf_hash(leaf))
        return len(leaves)

    def _list_due(self, session: Session) -> list[repository.DueHead]:
        """Look at every job once in a while, and at those that may have changed in between."""
        now = time.monotonic()
        is_sweep = now - self._swept_at > SWEEP_S
        ended_after = None if is_sweep else utc_now() - timedelta(seconds=10 * SWEEP_S)
        if is_sweep:
            self._swept_at = now
        interval_ms = int(self._settings.head_interval_s * 1000)
        return repository.list_due_heads(session, self._log.number, interval_ms, ended_after=ended_after)

    def _root_of(self, session: Session, due: repository.DueHead) -> bytes:
        tree = self._ledgers.pop(due.work_id, RootBuilder())
        for leaf in iterate_leaves(session, due.work_id, start=tree.size):
            if tree.size < due.size:
                tree.append(leaf_hash(leaf))
        if tree.size != due.size:
            raise NotaryRefuses(
                f"the ledger of {due.work_id} has {tree.size} records; its row says {due.size}"
            )
        if due.state not in RECORDED:
            self._ledgers[due.work_id] = tree
        return tree.root()

    def _sign(self) -> None:
        """Sign the log as it stands, unless that was done. The tree in memory is what was committed."""
        size, root = self._tree.size, self._tree.root()
        with read_only(self._database) as session:
            newest = repository.get_checkpoint(session, self._log.number)
        if not size or (newest is not None and newest.size >= size):
            return
        checkpoint = Checkpoint(self._log.origin, size, root)
        keyfile.save_last(self._folder, checkpoint)
        note = sign_note(format_checkpoint(checkpoint), [(self._log.origin, self._key)])
        with unit_of_work(self._database) as session:
            repository.lock_log(session)
            newest = repository.get_checkpoint(session, self._log.number)
            if newest is None or newest.size < size:
                session.add(
                    LogCheckpoint(
                        log=self._log.number,
                        size=size,
                        root=root.hex(),
                        note=note.decode(),
                        key=verifier_key(self._log.origin, self._key).id.hex(),
                        signed_at=utc_now(),
                    )
                )


def run_notary(database: Database, settings: Settings, stop: threading.Event) -> None:
    """Attend to the log until told to stop. A notary that refuses signs nothing, says why, and looks again after a while."""
    notary: Notary | None = None
    said = ""
    notary_id, seen_at = new_id("notary_"), -math.inf
    while not stop.wait(POLL_S):
        try:
            notary = notary or Notary(database, settings)
            notary.attend()
            if time.monotonic() - seen_at > SIGN_OF_LIFE_S:
                with unit_of_work(database) as session:
                    record_worker(session, worker_id=notary_id, queue=NOTARY, host=socket.gethostname()[:255])
                seen_at = time.monotonic()
        except SQLAlchemyError as error:
            # What was read or added in a transaction that failed is not what the log has.
            notary = None
            log.warning("the database cannot be used (%s); trying again", type(error).__name__)
        except OSError as error:
            notary = None
            log.warning(
                "the notary's folder %s cannot be used (%s); trying again",
                settings.notary_dir,
                error.strerror,
            )
        except (NotaryRefuses, ConfigurationError) as refusal:
            notary = None
            if refusal.message != said:
                said = refusal.message
                log.error("the notary signs nothing: %s", refusal)
            stop.wait(AFTER_REFUSAL_S)


def fork_log(database: Database, settings: Settings) -> str:
    """Open a new log where the notary cannot go on with the old one; return its origin.

    The break is the first thing on record in it, with what the notary had signed of the old one.
    """
    keyfile.make_folder(settings.notary_dir)
    last = keyfile.load_last(settings.notary_dir)
    with unit_of_work(database) as session:
        repository.lock_log(session)
        old = repository.get_log(session)
        signed = repository.get_checkpoint(session, old.number) if old else None
        if last is None and old is not None and signed is not None:
            # The notary's memory is gone; what the database has was signed, if perhaps not last.
            last = Checkpoint(old.origin, signed.size, bytes.fromhex(signed.root))
        name = last.origin if last else old.origin if old else f"tether/{secrets.token_hex(8)}"
        # Whoever restores a backup twice forks twice, and two logs must not have one name.
        origin = f"{name.partition('/fork-')[0]}/fork-{secrets.token_hex(4)}"
        repository.add_log(session, origin)
        repository.add_event(
            session,
            "log.fork",
            actor=OPERATOR_AT_THE_MACHINE,
            subject=f"{last.origin}@{last.size}" if last else None,
            sha256=last.root.hex() if last else None,
        )
    keyfile.save_last(settings.notary_dir, Checkpoint(origin, 0, RootBuilder().root()))
    return origin


def _contradicted(last: Checkpoint, found: str) -> NotaryRefuses:
    return NotaryRefuses(
        f"the notary has signed {last.size} leaves of the log {last.origin}; the database {found}. It was rolled back or"
        " changed. Put back the database that belongs to this notary; where that is lost, open a new log with: tether log fork"
    )
