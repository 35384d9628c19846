"""Collecting what no row refers to: bytes whose transaction failed, and what killed processes have left.

Bytes come before their row, so that something is garbage only a while after it was stored: `deletion_grace_s`, and an hour
at least, counted from now, or from the beginning of the oldest attempt at any work that is still under way, whichever is
earlier. An attempt may take hours between storing an adapter and committing it, an API request may not. Nothing is collected
unless the notary has said within the last moments that it signs this database: what an old backup does not know may be
needed by the database that it stands in for.
"""

import contextlib
import itertools
import logging
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import storage
from app.database import Database, read_only
from app.domain.job import OWNED
from app.errors import StorageUnavailable
from app.models.base import now_ms
from app.models.tenancy import Span
from app.models.work import Work
from app.notary.repository import get_refusal
from app.notary.service import NOTARY
from app.settings import Settings
from app.storage import Found, Place
from app.storage.local import list_aside
from app.stored_bytes import find_referenced, list_resumable
from app.work.fair_queue import WORKER_SILENCE_MS
from app.work.repository import list_live_queues

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""The folder, or the prefix of the bucket, in which each job has a place for its checkpoints."""
TEMPORARY = ("export-", "reload-", "critic-", "tether-model-")
"""How the names of the folders begin in which a process that works puts things together, in the home folder."""
LEAST_GRACE_S = 3600.0
"""An upload that is under way has stored bytes and no row yet, however soon the bytes of deleted files are to go."""
BATCH = 1000
"""Digests that the database is asked about at a time."""
TURNS = (*storage.SHARDS, CHECKPOINTS)


def take_turns() -> Iterator[str]:
    """Yield TURNS for ever, from any of them on: a process that restarts often gets to each of them too."""
    start = secrets.randbelow(len(TURNS))
    return itertools.cycle((*TURNS[start:], *TURNS[:start]))


_turn = take_turns()


def place_of_checkpoints(settings: Settings, job_id: str) -> Place | None:
    """Return where in the bucket the checkpoints of a job are; None where there is no bucket, and they are local."""
    if not settings.storage_url:
        return None
    return storage.below(settings.storage, CHECKPOINTS, job_id)


def collect_garbage(database: Database, settings: Settings) -> None:
    """Look at one part of the storage in 257, another one each time, and remove what nobody needs there.

    So a round costs one listing and a query, however much is stored.
    """
    collect_part(database, settings, next(_turn))


def collect_all(database: Database, settings: Settings, *, least_grace_s: float = LEAST_GRACE_S) -> int:
    """Look at every part, and return how much was removed."""
    return sum(collect_part(database, settings, turn, least_grace_s=least_grace_s) for turn in TURNS)


def collect_part(
    database: Database, settings: Settings, turn: str, *, least_grace_s: float = LEAST_GRACE_S
) -> int:
    """Remove what nobody needs in a part of the storage, one of TURNS; return how much that was."""
    before = find_cutoff(database, settings, least_grace_s=least_grace_s)
    if before is None:
        return 0
    try:
        if turn != CHECKPOINTS:
            return _collect_shard(database, settings.storage, turn, before)
        removed = collect_machine(database, settings, before)
        if settings.storage_url:
            removed += _collect_bucket(database, settings, before)
        return removed
    except StorageUnavailable as error:
        log.warning("the storage cannot be tidied: %s", error.message)
        return 0


def find_cutoff(
    database: Database, settings: Settings, *, least_grace_s: float = LEAST_GRACE_S
) -> float | None:
    """Return the time, in seconds since 1970, before which what nobody refers to is garbage; None where nothing is.

    That no refusal is noted is not enough: no notary may have looked at this database yet. One says that it lives only
    after it has signed, and what an old backup says of that is long ago.
    """
    with read_only(database) as session:
        if get_refusal(session) is not None or NOTARY not in list_live_queues(session, WORKER_SILENCE_MS):
            return None
        oldest = session.scalar(
            select(func.min(Span.started_ms))
            .join(Work, (Work.id == Span.work_id) & (Work.epoch == Span.epoch))
            .where(Work.state.in_(OWNED))
        )
        now = session.scalar(select(now_ms()))
    times = [time.time(), *(each / 1000 for each in (oldest, now) if each is not None)]
    return min(times) - max(settings.deletion_grace_s, least_grace_s)


def find_orphans(session: Session, found: Iterable[Found], before: float) -> Iterator[Found]:
    """Yield what was stored before a time and no row refers to."""
    old = (each for each in found if each.stored_at < before)
    while batch := list(itertools.islice(old, BATCH)):
        referenced = find_referenced(session, {each.sha256 for each in batch})
        yield from (each for each in batch if each.sha256 not in referenced)


def _collect_shard(database: Database, place: Place, shard: str, before: float) -> int:
    with read_only(database) as session:
        orphans = list(
            itertools.islice(find_orphans(session, storage.list_shard(place, shard), before), BATCH)
        )
    removed = 0
    for orphan in orphans:
        # The same bytes may have been stored again since the listing.
        if storage.discard_older(place, orphan.sha256, time.time() - before):
            log.info("%s, of %d bytes, belonged to nothing and was removed", orphan.sha256, orphan.size_bytes)
            removed += 1
    return removed


def collect_machine(database: Database, settings: Settings, before: float | None = None) -> int:
    """Remove from this machine's folders the checkpoints that no job goes on from, and what killed processes have left.

    Without `before`, what is garbage by now. A reconciler does this where it shares the folders, and each worker before
    it begins a job. Returns how much was removed.
    """
    before = find_cutoff(database, settings) if before is None else before
    if before is None:
        return 0
    return _collect_checkpoints(database, settings, before) + _collect_temporary(settings, before)


def _collect_checkpoints(database: Database, settings: Settings, before: float) -> int:
    root = settings.checkpoints_dir
    if not root.is_dir():
        return 0
    jobs = [each for each in root.iterdir() if each.is_dir()]
    with read_only(database) as session:
        resumable = list_resumable(session, [each.name for each in jobs])
    removed = 0
    for job in jobs:
        kept = {row.folder for row in resumable.get(job.name, ())}
        old: list[Path] = []
        # Another worker of this machine may have removed the folder meanwhile.
        with contextlib.suppress(FileNotFoundError):
            old = [each for each in job.iterdir() if each.name not in kept and _is_older(each, before)]
        for each in old:
            log.info("%s/%s belonged to nothing and was removed", job.name, each.name)
            shutil.rmtree(each, ignore_errors=True)
        removed += len(old)
        if _is_older(job, before):
            # Not where something lies in it, or is put there just now.
            with contextlib.suppress(OSError):
                job.rmdir()
    return removed


def _collect_bucket(database: Database, settings: Settings, before: float) -> int:
    found = storage.list_tree(settings.storage_url, CHECKPOINTS)
    old = [(job, each) for job, each in found if each.stored_at < before]
    with read_only(database) as session:
        resumable = list_resumable(session, {job for job, _ in old})
    kept = {
        (job, sha256)
        for job, rows in resumable.items()
        for row in rows
        for sha256 in (row.stored or {}).values()
    }
    orphans = [(job, each) for job, each in old if (job, each.sha256) not in kept][:BATCH]
    removed = sum(
        storage.discard_older(
            storage.below(settings.storage, CHECKPOINTS, job), orphan.sha256, time.time() - before
        )
        for job, orphan in orphans
    )
    if removed:
        log.info("%d files of checkpoints in the bucket belonged to nothing and were removed", removed)
    return removed


def _collect_temporary(settings: Settings, before: float) -> int:
    folders = (each for name in TEMPORARY for each in settings.home.glob(f"{name}*"))
    aside = list_aside(settings.storage) if isinstance(settings.storage, Path) else ()
    old = [each for each in (*folders, *aside) if _is_older(each, before)]
    for each in old:
        log.info("%s was left by a process that ended, and was removed", each.name)
        if each.is_dir():
            shutil.rmtree(each, ignore_errors=True)
        else:
            each.unlink(missing_ok=True)
    return len(old)


def _is_older(path: Path, before: float) -> bool:
    try:
        return path.stat().st_mtime < before
    except FileNotFoundError:
        return False
