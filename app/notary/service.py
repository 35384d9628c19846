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
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.audit.repository import iterate_leaves
from app.database import Database, read_only, unit_of_work
from app.domain.installation_log import Checkpoint, build_head, format_checkpoint
from app.domain.job import RECORDED
from app.domain.merkle import RootBuilder, leaf_hash
from app.domain.note import VerifierKey, sign_note, verifier_key
from app.domain.retention import record_hash
from app.errors import ConfigurationError, NotaryRefuses
from app.failpoints import failpoint
from app.models.base import new_id, now_ms, utc_now
from app.models.installation_log import InstallationLog, LogCheckpoint, LogHead, LogLeaf
from app.notary import keyfile, repository
from app.notary.attestations import attest_adapters
from app.notary.refusals import RefusedJobs
from app.settings import Settings
from app.work.repository import record_worker

log = logging.getLogger(__name__)

POLL_S = 0.5
NOTARY = "notary"
"""What it is called among the processes that say that they live."""
SIGN_OF_LIFE_S = 5.0
AFTER_REFUSAL_S = 5.0
OPERATOR_AT_THE_MACHINE = "command-line"
KEY_ROTATE = "key.rotate"
LOG_FORK = "log.fork"
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
        self._last: Checkpoint | None = None
        """What was signed last when the tree was compared with it."""
        self._tree = RootBuilder()
        self._swept_at = -math.inf
        self._refused = RefusedJobs()
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
        self._check_key(found.origin, repository.get_checkpoint(session, found.number))
        self._replay(session, found, last)
        return found

    def _check_key(self, origin: str, newest: LogCheckpoint | None) -> None:
        """Refuse to go on with a key from before a rotation, or with a new one that nobody was told of."""
        ours = [each for each in (self._key, keyfile.load_next_key(self._folder)) if each is not None]
        keys = [verifier_key(origin, each) for each in ours]
        keys += [VerifierKey(origin, each) for each in keyfile.load_former_keys(self._folder)]
        if newest is not None and newest.key not in [key.id.hex() for key in keys]:
            raise NotaryRefuses(
                f"the log {origin} was signed last by the key {newest.key}, and {self._folder} has the key"
                f" {keys[0].id.hex()}: the folder is from before a rotation, or its key was lost. Put the newest copy of it"
                " back, or open a new log with: tether log fork"
            )

    def _replay(self, session: Session, found: InstallationLog, last: Checkpoint | None) -> None:
        """Build the tree from the database, and compare it with what was signed last."""
        self._tree, self._last = RootBuilder(), last
        for leaf in repository.iterate_log(session, found.number):
            self._tree.append(leaf_hash(leaf))
            if last is not None and self._tree.size == last.size and self._tree.root() != last.root:
                raise _contradicted(last, "has another root at that size")
        if last is not None and self._tree.size < last.size:
            raise _contradicted(last, f"has {self._tree.size} leaves")

    @property
    def origin(self) -> str:
        """The name of the log that it signs."""
        return self._log.origin

    @property
    def number(self) -> int:
        """The number of the log that it signs."""
        return self._log.number

    def attend(self) -> int:
        """Do one round; return how many leaves are new. Raises NotaryRefuses where somebody else changed the log."""
        with unit_of_work(self._database) as session:
            repository.lock_log(session)
            self._catch_up(session)
            new = self._sequence(session)
        self._sign()
        signer = verifier_key(self._log.origin, self._key)
        attest_adapters(self._database, self._log, signer, self._key.sign, self._refused)
        self._refused.note(self._database)
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
        leaves = repository.take_pending_events(session, number)
        if start == 0:
            # What waited for the log before comes after what happened to that one.
            leaves.sort(key=lambda leaf: b'"event":"%s"' % LOG_FORK.encode() not in leaf)
        ts_db = session.scalars(select(now_ms())).one()
        heads = []
        for due in self._list_due(session):
            try:
                ledger_root = self._root_of(session, due)
            except ValueError as error:
                # One damaged record keeps nobody else's from being signed.
                self._refused.add(due.work_id, str(error))
                continue
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
                    root=ledger_root.hex(),
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
            self._refused.look_again()
        interval_ms = int(self._settings.head_interval_s * 1000)
        due = repository.list_due_heads(session, self._log.number, interval_ms, ended_after=ended_after)
        return [each for each in due if each.work_id not in self._refused]

    def _root_of(self, session: Session, due: repository.DueHead) -> bytes:
        """Return the root over a job's records. Raises ValueError where they are not as many as its row says."""
        tree = self._ledgers.pop(due.work_id, RootBuilder())
        for leaf in iterate_leaves(session, due.work_id, start=tree.size):
            if tree.size < due.size:
                tree.append(record_hash(leaf))
        if tree.size != due.size:
            raise ValueError(f"its ledger has {tree.size} records; its row says {due.size}")
        if due.state not in RECORDED:
            self._ledgers[due.work_id] = tree
        return tree.root()

    def _sign(self) -> None:
        """Sign the log as it stands, unless that was done. The tree in memory is what was committed."""
        with keyfile.locked(self._folder):
            last, next_key = keyfile.load_last(self._folder), keyfile.load_next_key(self._folder)
            with read_only(self._database) as session:
                newest = repository.get_checkpoint(session, self._log.number)
                if last != self._last:
                    self._compare(session, last)
                size = self._tree.size
                if next_key is not None and not self._is_announced(session, next_key):
                    next_key = None
            self._key = keyfile.load_key(self._folder)
            if size and (newest is None or newest.size < size):
                signers = [self._key] if next_key is None else [self._key, next_key]
                newest = self._add_checkpoint(Checkpoint(self._log.origin, size, self._tree.root()), signers)
            if next_key is not None and newest is not None and newest.key == self._id_of(next_key):
                keyfile.take_next_key(self._folder)
                self._key = next_key
                log.info("the notary's key was rotated; auditors need the new trust policy: tether log trust")

    def _is_announced(self, session: Session, key: Ed25519PrivateKey) -> bool:
        """Say whether the next key stands under what is signed now; another notary may have added to the log since."""
        subject = _announcement(self._log.origin, key)
        return repository.is_in_log(session, self._log.number, subject, end=self._tree.size)

    def _compare(self, session: Session, last: Checkpoint | None) -> None:
        """Hold the database against what another notary of this folder signed meanwhile."""
        if last is None or last.origin != self._log.origin:
            raise NotaryRefuses("the notary's memory became another one while it ran; it looks at it anew")
        self._replay(session, self._log, last)

    def _add_checkpoint(self, checkpoint: Checkpoint, signers: Sequence[Ed25519PrivateKey]) -> LogCheckpoint:
        """Remember a checkpoint, sign it, and keep it in the database. Of two keys, the second goes on alone."""
        failpoint("notary.before_file")
        keyfile.save_last(self._folder, checkpoint)
        failpoint("notary.after_file")
        self._last = checkpoint
        note = sign_note(format_checkpoint(checkpoint), [(self._log.origin, key) for key in signers])
        added = LogCheckpoint(
            log=self._log.number,
            size=checkpoint.size,
            root=checkpoint.root.hex(),
            note=note.decode(),
            key=self._id_of(signers[-1]),
            signed_at=utc_now(),
        )
        with unit_of_work(self._database) as session:
            repository.lock_log(session)
            session.add(added)
        return added

    def _id_of(self, key: Ed25519PrivateKey) -> str:
        return verifier_key(self._log.origin, key).id.hex()


def run_notary(database: Database, settings: Settings, stop: threading.Event) -> None:
    """Attend to the log until told to stop. A notary that refuses signs nothing, says why, and looks again after a while."""
    notary: Notary | None = None
    said = ""
    notary_id, seen_at = new_id("notary_"), -math.inf
    while not stop.wait(POLL_S):
        try:
            notary = notary or Notary(database, settings)
            notary.attend()
            said = ""
            if time.monotonic() - seen_at > SIGN_OF_LIFE_S:
                with unit_of_work(database) as session:
                    repository.take_back_refusal(session)
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
            # In each round: the one before may not have reached the database.
            _tell_refusal(database, said)
            seen_at = -math.inf
            stop.wait(AFTER_REFUSAL_S)
        except Exception:
            notary = None
            log.exception("the notary's round failed; trying again")
            stop.wait(AFTER_REFUSAL_S)


def _tell_refusal(database: Database, reason: str) -> None:
    """Let those who wait for a signature know why there is none, where this database takes a row at all."""
    try:
        with unit_of_work(database) as session:
            repository.note_refusal(session, reason)
    except SQLAlchemyError as error:
        log.warning("that the notary refuses could not be noted (%s)", type(error).__name__)


class Rotated(NamedTuple):
    """The keys of a rotation, as auditors know them."""

    old: VerifierKey
    new: VerifierKey


def rotate_key(database: Database, settings: Settings) -> Rotated:
    """Let another key sign from now on: announced in the log, under one checkpoint that both keys sign.

    What a crash cuts off, the notary's next round or another call ends. Raises ConfigurationError before the first
    signature, and NotaryRefuses where the notary would not sign.
    """
    folder = settings.notary_dir
    if keyfile.load_last(folder) is None:
        raise ConfigurationError(f"{folder} has signed nothing yet, so there is no key to rotate")
    notary = Notary(database, settings)
    with keyfile.locked(folder):
        old, new = keyfile.load_key(folder), keyfile.make_next_key(folder)
        with unit_of_work(database) as session:
            repository.lock_log(session)
            origin = notary.origin
            subject = _announcement(origin, new)
            if not repository.is_known_subject(session, notary.number, subject):
                repository.add_event(session, KEY_ROTATE, actor=OPERATOR_AT_THE_MACHINE, subject=subject)
    notary.attend()
    if keyfile.load_next_key(folder) is not None:
        raise NotaryRefuses(
            "the rotation was begun and is not over; the notary ends it with its next round, or run this again"
        )
    return Rotated(verifier_key(origin, old), verifier_key(origin, new))


def _announcement(origin: str, key: Ed25519PrivateKey) -> str:
    """Return how the log names a new key: id and key, without the name, which is the log's own origin."""
    return str(verifier_key(origin, key)).partition("+")[2]


def list_keys(
    settings: Settings, signers: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[VerifierKey]], dict[str, list[str]]]:
    """Return the keys of each log that an auditor has to trust, and the ids of those that the notary's folder does not know.

    `signers` has the ids of the keys that signed each log; which keys these are, the folder says and never the
    database. The newest log has the present key in any case. Raises ConfigurationError before the first signature.
    """
    folder = settings.notary_dir
    if keyfile.load_last(folder) is None:
        raise ConfigurationError(
            f"{folder} does not know what was signed last, so nothing was signed here yet or its files are missing; the"
            " log of tether serve, or of tether notary, says which"
        )
    present = keyfile.load_key(folder).public_key().public_bytes_raw()
    known = [*keyfile.load_former_keys(folder), present]
    trusted: dict[str, list[VerifierKey]] = {}
    unknown: dict[str, list[str]] = {}
    for origin, ids in signers.items():
        is_newest = origin == list(signers)[-1]
        keys = [VerifierKey(origin, public) for public in known]
        found = [key for key in keys if key.id.hex() in ids or (is_newest and key.public == present)]
        if found:
            trusted[origin] = found
        missing = [each for each in ids if each not in [key.id.hex() for key in keys]]
        if missing:
            unknown[origin] = missing
    return trusted, unknown


def fork_log(database: Database, settings: Settings) -> str:
    """Open a new log where the notary cannot go on with the old one; return its origin.

    The break is the first thing on record in it, with what the notary had signed of the old one.
    """
    keyfile.make_folder(settings.notary_dir)
    # A key that is lost is lost before the new log's first signature, not with it.
    keyfile.load_key(settings.notary_dir)
    # A notary that runs signs nothing between what is read here and what is written.
    with keyfile.locked(settings.notary_dir):
        last = _remembered(settings.notary_dir)
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
                LOG_FORK,
                actor=OPERATOR_AT_THE_MACHINE,
                subject=f"{last.origin}@{last.size}" if last else None,
                sha256=last.root.hex() if last else None,
            )
        keyfile.save_last(settings.notary_dir, Checkpoint(origin, 0, RootBuilder().root()))
    return origin


def _remembered(folder: Path) -> Checkpoint | None:
    """Return what was signed last; None where nobody knows, which is a reason to fork and none against it."""
    try:
        return keyfile.load_last(folder)
    except ConfigurationError as error:
        log.warning("the fork goes by what the database knows: %s", error.message)
        return None


def _contradicted(last: Checkpoint, found: str) -> NotaryRefuses:
    return NotaryRefuses(
        f"the notary has signed {last.size} leaves of the log {last.origin}; the database {found}. It was rolled back or"
        " changed. Put back the database that belongs to this notary; where that is lost, open a new log with: tether log fork"
    )
