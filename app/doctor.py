"""Looking at every part that a job needs."""

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app import storage
from app.base_models.repository import list_base_models
from app.base_models.service import verify_base_model
from app.critics.repository import get_newest_critic
from app.database import Database, open_engine, read_only
from app.errors import BrokerUnavailable, StorageUnavailable, TetherError
from app.failpoints import VARIABLE, list_armed
from app.garbage import find_cutoff, find_orphans
from app.health import WORKER_SILENCE_MS, mend_anchors, mend_critic
from app.migration import current_revision, how_to_mend, newest_revision
from app.notary.anchor import find_standing
from app.notary.repository import get_refusal, list_refused_jobs
from app.notary.service import NOTARY
from app.queue import QUEUES, build_publisher, check_broker
from app.safety_sets.repository import get_newest_set
from app.seat_belts import are_fastened
from app.settings import Settings
from app.stored_bytes import list_needed
from app.work.repository import list_live_queues

DEVICE = (
    "import json; from worker.training.models import choose_device, environment;"
    "print(json.dumps(environment(choose_device())))"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report."""

    what: str
    found: str
    todo: str | None = None
    """What to do about it; None where it is well."""


def examine(settings: Settings) -> list[Finding]:
    """Return a finding for each part, in the order in which they depend on each other."""
    findings = [*_versions(), _device(), *_failpoints()]
    if not settings.has_data:
        todo = "name the right folder with --home or TETHER_HOME, or make it with: tether serve"
        return [*findings, Finding("data", f"none in {settings.home}", todo)]
    findings += [_storage(settings), *_room(settings), _broker(settings)]
    engine = open_engine(settings.database_url)
    try:
        findings += _database(Database(engine, build_publisher(settings)), settings)
    finally:
        engine.dispose()
    return findings


def _failpoints() -> Iterator[Finding]:
    if list_armed():
        yield Finding("failpoints", ", ".join(list_armed()), f"processes fail on purpose; unset {VARIABLE}")


def _versions() -> Iterator[Finding]:
    yield Finding("python", platform.python_version())
    for name in (
        "tether",
        "fastapi",
        "celery",
        "sqlalchemy",
        "torch",
        "transformers",
        "peft",
        "vl-convert-python",
    ):
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            extra = "charts" if name.startswith("vl") else "worker"
            yield Finding(name, "not installed", f"pip install 'tether[{extra}]'")


def _device() -> Finding:
    # In a process of its own: this one never loads torch.
    found = subprocess.run([sys.executable, "-c", DEVICE], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        return Finding("device", "torch cannot be loaded", "pip install 'tether[worker]'")
    environment = json.loads(found.stdout)
    return Finding("device", f"{environment['device']} ({environment['threads']} threads)")


def _storage(settings: Settings) -> Finding:
    return Finding("storage", str(settings.storage), _complaint(lambda: storage.probe(settings.storage)))


def _broker(settings: Settings) -> Finding:
    kind = settings.broker_url.partition("://")[0]
    try:
        check_broker(settings)
    except BrokerUnavailable as error:
        return Finding("broker", kind, error.message)
    return Finding("broker", kind)


def _database(database: Database, settings: Settings) -> Iterator[Finding]:
    kind = database.engine.dialect.name
    try:
        with read_only(database) as session:
            revision = current_revision(session.connection())
            if revision != newest_revision():
                yield Finding("database", f"{kind}, revision {revision}", how_to_mend(revision))
                return
            yield Finding("database", f"{kind}, revision {revision}")
            yield _triggers(session)
            live = list_live_queues(session, WORKER_SILENCE_MS)
            for queue in QUEUES:
                todo = None if queue in live else f"start one: tether serve, or tether worker --queue {queue}"
                yield Finding(f"worker of the queue {queue}", "alive" if queue in live else "none", todo)
            todo = (
                None
                if NOTARY in live
                else "start one: tether serve, or tether notary; its log says why it ended"
            )
            refusal = get_refusal(session)
            if refusal is not None:
                yield Finding("notary", f"refuses since {refusal.since:%Y-%m-%d %H:%M} UTC", refusal.reason)
            else:
                yield Finding("notary", "alive" if NOTARY in live else "none", todo)
            for work_id, refused in list_refused_jobs(session).items():
                since = f"the notary refuses to sign since {refused.since:%Y-%m-%d %H:%M} UTC"
                yield Finding(f"record of {work_id}", since, refused.reason)
            yield _anchor(session, settings)
            bases = list_base_models(session)
            if not bases:
                yield Finding("base models", "none", "run: tether models add NAME PATH")
            for base in bases:
                todo = _complaint(lambda base=base: verify_base_model(base))  # type: ignore[misc]
                yield Finding(f"model {base.name}", base.digest[:12], todo)
                critic = get_newest_critic(session, base)
                quality = f"{critic.id}, AUROC {critic.report['auroc']:.3f}" if critic else "none"
                yield Finding(f"critic of {base.name}", quality, mend_critic(session, base))
                anchors = get_newest_set(session, base, "anchors")
                found = f"{anchors.id}, {anchors.rows} requests" if anchors else "none"
                yield Finding(f"anchors of {base.name}", found, mend_anchors(session, base))
        yield from _stored_bytes(database, settings)
    except SQLAlchemyError as error:
        yield Finding(
            "database", kind, f"not reachable ({type(error).__name__}): start it, or mend TETHER_DATABASE_URL"
        )


def _room(settings: Settings) -> Iterator[Finding]:
    for what, folder in {"storage": settings.storage, "checkpoints": settings.checkpoints_dir}.items():
        free, reserve = storage.free_bytes(folder), settings.disk_reserve_bytes
        todo = (
            f"free {reserve - free} bytes at least; {reserve} are kept (TETHER_DISK_RESERVE_BYTES), so that uploads are"
            " refused and jobs wait"
        )
        yield Finding(f"disk of {what}", f"{free} bytes free", None if free >= reserve else todo)


def _stored_bytes(database: Database, settings: Settings) -> Iterator[Finding]:
    """Compare what rows refer to with what is stored."""
    try:
        found = [each for shard in storage.SHARDS for each in storage.list_shard(settings.storage, shard)]
        before = find_cutoff(database, settings)
        there = {each.sha256 for each in found}
        with read_only(database) as session:
            seem_missing = {each for each in list_needed(session) if each[0] not in there}
            orphans = list(find_orphans(session, found, before)) if before is not None else []
        # Once more: what was committed since the listing is not in it.
        missing = sorted(
            each for each in seem_missing if storage.stored_at(settings.storage, each[0]) is None
        )
    except StorageUnavailable:
        return
    named = ", ".join(f"{sha256[:12]} ({column})" for sha256, column in missing[:5])
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    yield Finding(
        "bytes that rows refer to",
        f"{len(missing)} missing: {named}{more}" if missing else "all in storage",
        "restore them from the backup of the storage" if missing else None,
    )
    if orphans:
        size = sum(each.size_bytes for each in orphans)
        yield Finding(
            "bytes that no row refers to", f"{len(orphans)} of {size} bytes; the reconciler removes them"
        )


def _triggers(session: Session) -> Finding:
    if are_fastened(session.connection()):
        return Finding("triggers", "on: what is on record is not changed by accident")
    return Finding("triggers", "some are off, which keep what is on record", "run: tether migrate")


def _anchor(session: Session, settings: Settings) -> Finding:
    standing = find_standing(session)
    if not settings.anchor_url and not standing.is_known:
        # No fault: receipts and checkpoints that others keep do the same. What it means is in docs/ledger.md.
        return Finding("anchor", "none; keep receipts, or: tether log checkpoint")
    found = f"{standing.sent_at:%Y-%m-%d %H:%M} UTC" if standing.sent_at else "nothing taken yet"
    if not standing.is_late(settings):
        return Finding("anchor", found)
    return Finding(
        "anchor",
        f"{found}; behind by {standing.lag_s:.0f} s",
        f"{standing.error or 'nobody sends; run: tether webhooks deliver'}; mend the receiver, or TETHER_ANCHOR_URL",
    )


def _complaint(check: Callable[[], None]) -> str | None:
    try:
        check()
    except TetherError as error:
        return error.message
    return None
