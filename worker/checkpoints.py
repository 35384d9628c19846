"""The checkpoints that a job goes on from: where they lie, which of them are kept, and what is said when one is lost.

They lie in the storage folder of the machine that trains. Where files and weights are in a bucket, so are they, in a place
of their job's own, so that any machine can go on with it. What is in the bucket is there before the row that names it,
and goes after the row has let go of it.
"""

import errno
import logging
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

from transformers import PreTrainedModel

from app import storage
from app.database import read_only, unit_of_work
from app.domain import ledger
from app.domain.job import model_name
from app.domain.training_spec import TrainingSpec
from app.errors import BytesDamaged, BytesMissing, JobFailure, StorageFull, StorageUnavailable
from app.garbage import place_of_checkpoints
from app.jobs import repository
from app.models.job import Checkpoint as CheckpointRow
from app.models.job import Job
from app.models.work import Work
from app.work import service as work_service
from worker.context import Context, Paused
from worker.journal import Journal
from worker.training.checkpoint import (
    CheckpointDamaged,
    CheckpointMissing,
    LoadedCheckpoint,
    check_room,
    load_checkpoint,
    write_checkpoint,
)
from worker.training.loop import Checkpoint
from worker.training.models import lora_targets

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
BYTES_OF_A_PARAMETER = 12
"""In a checkpoint: the weight and the two moments of AdamW, each in float32."""


class Lost(NamedTuple):
    """A checkpoint on record that cannot be gone on from."""

    row: CheckpointRow
    why: str
    """A word of the record: missing, changed or unreadable."""


# --- going on ---------------------------------------------------------------------------------------------


def find_checkpoint(context: Context, journal: Journal, job_id: str) -> LoadedCheckpoint | None:
    """Return the newest checkpoint that is whole, here or in the bucket; None where the job starts at its beginning.

    Each newer one is put on record as invalid. Raises JobFailure with code `checkpoint_lost` where none is whole, and
    StorageUnavailable where the bucket does not answer: then nobody knows.
    """
    with read_only(context.database) as session:
        rows = repository.list_resumable(session, job_id)
    lost: list[Lost] = []
    for row in rows:
        try:
            found = _load(context, row)
        except CheckpointDamaged as error:
            log.warning("%s: %s", job_id, error.message)
            lost.append(Lost(row, error.why))
            continue
        for each in lost:
            journal.record_invalid(each.row, each.why, instead=found.info.step)
            shutil.rmtree(context.checkpoint_folder / str(each.row.folder), ignore_errors=True)
        return found
    if not rows:
        return None
    for each in lost:
        journal.record_invalid(each.row, each.why, instead=None)
    raise JobFailure(_describe_loss(lost), code="checkpoint_lost")


def _load(context: Context, row: CheckpointRow) -> LoadedCheckpoint:
    """Return a checkpoint from this machine's folder, else from the bucket. Raises CheckpointDamaged where neither has it."""
    try:
        return _load_here(context, row)
    except CheckpointDamaged as error:
        if row.stored is None:
            raise
        log.info("%s: %s; it is fetched from the bucket", row.job_id, error.message)
    place = place_of_checkpoints(context.settings, row.job_id)
    if place is None:
        raise CheckpointMissing(
            f"the checkpoint {row.folder} is in a bucket, and TETHER_STORAGE_URL names none any more"
        )
    contents = {}
    for name, sha256 in row.stored.items():
        context.check()
        try:
            contents[name] = storage.read_checked(place, sha256)
        except BytesMissing as error:
            raise CheckpointMissing(f"the checkpoint {row.folder}: {error.message}") from error
        except BytesDamaged as error:
            raise CheckpointDamaged(f"the checkpoint {row.folder}: {error.message}") from error
    write_checkpoint(
        context.checkpoint_folder, row.step, contents, reserve_bytes=context.settings.disk_reserve_bytes
    )
    return _load_here(context, row)


def _load_here(context: Context, row: CheckpointRow) -> LoadedCheckpoint:
    found = load_checkpoint(context.checkpoint_folder / str(row.folder))
    if ledger.digest_of(found.info.files) != row.digest:
        raise CheckpointDamaged(f"the checkpoint {row.folder} is not the one that was recorded")
    return found


def _describe_loss(lost: list[Lost]) -> str:
    here = socket.gethostname()
    each = "; ".join(f"the one after step {row.step} is {why}" for row, why in lost)
    elsewhere = sorted(
        {str(row.host) for row, _ in lost if row.host not in (None, here) and row.stored is None}
    )
    message = (
        f"none of the checkpoints of this job can be read any more ({each}), so it cannot go on where it was. Submit it"
        " again"
    )
    if not elsewhere:
        return message
    return (
        f"{message}. They were on another machine alone ({', '.join(elsewhere)}; this one is {here}): with a bucket"
        " (TETHER_STORAGE_URL), or a storage folder that all machines share, a job outlives its machine"
    )


def tell_surroundings(context: Context, environment: Mapping[str, str], device: str) -> None:
    """Tell the client where a resumed job goes on in another environment than it began in.

    Both are on record. The bits of the result are promised for the same one alone.
    """
    with unit_of_work(context.database) as session:
        context.lease.load(session)
        job = repository.load_job(session, context.lease.work_id)
        start = repository.load_start_record(session, job.id)
        before = {**start["body"]["environment"], "device_used": start["body"]["device"]}
        now = {**environment, "device_used": device}
        changed = {
            name: [before.get(name), now.get(name)]
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        }
        if not changed:
            return
        named = ", ".join(f"{name} {was} → {is_now}" for name, (was, is_now) in changed.items())
        repository.add_event(
            session,
            job,
            f"The job goes on in another environment than it began in ({named}). It goes on from the exact state; the steps"
            " from here on may differ in their last bits from those of a run that nothing interrupted"
            " (determinism=best_effort)",
            level="warn",
            data={"determinism": "best_effort", "changed": changed},
        )


# --- keeping ----------------------------------------------------------------------------------------------


def commit_checkpoint(
    context: Context, journal: Journal, job: Job, checkpoint: Checkpoint, adapter_sha256: str | None
) -> None:
    """Commit a checkpoint that the loop wrote, and let go of those beyond the last two.

    One whose adapter was stored gets a name, under which the client finds it once the job has succeeded.
    """
    info = checkpoint.info
    name = model_name(job.model, job.suffix, job.id, step=info.step) if adapter_sha256 else None
    place = place_of_checkpoints(context.settings, job.id)
    stored = _upload(context, place, info.path, info.files) if place is not None else None
    journal.record_checkpoint(
        step=info.step,
        kind=checkpoint.kind,
        folder=info.path.name,
        files=info.files,
        name=name,
        adapter_sha256=adapter_sha256,
        stored=stored,
        host=socket.gethostname(),
        size_bytes=info.size_bytes,
    )
    with unit_of_work(context.database) as session:
        context.lease.load(session)
        rows = repository.list_resumable(session, job.id)
        kept = rows[:KEPT_CHECKPOINTS]
        folders = {str(row.folder) for row in rows} - {str(row.folder) for row in kept}
        needed = {sha256 for row in kept for sha256 in (row.stored or {}).values()}
        unneeded = {sha256 for row in rows for sha256 in (row.stored or {}).values()} - needed
        for row in rows[KEPT_CHECKPOINTS:]:
            row.folder = row.stored = None
    for folder in folders:
        shutil.rmtree(info.path.parent / folder, ignore_errors=True)
    if place is not None:
        _discard(place, unneeded)


def _upload(context: Context, place: storage.Place, folder: Path, files: dict[str, str]) -> dict[str, str]:
    for name, sha256 in files.items():
        context.lease.check()
        if storage.store_file(place, folder / name).sha256 != sha256:
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
    return files


def _discard(place: storage.Place, digests: set[str]) -> None:
    for sha256 in digests:
        try:
            storage.discard(place, sha256)
        except StorageUnavailable as error:
            log.warning("%s of a checkpoint is left to the reconciler: %s", sha256, error.message)
            return


# --- room -------------------------------------------------------------------------------------------------


def check_room_to_begin(context: Context, size_bytes: int | None = None) -> None:
    """Raise StorageFull where the disk has no room for the checkpoints that the job will keep.

    `size_bytes` is what one takes; without it, what the last one took. The work is then postponed, because another machine
    may have room; a job that was postponed as often as it may be pauses instead of failing.
    """
    with read_only(context.database) as session:
        rows = repository.list_resumable(session, context.lease.work_id)
        failures = session.get_one(Work, context.lease.work_id).infrastructure_failures
    size = max((row.size_bytes or 0 for row in rows), default=0) if size_bytes is None else size_bytes
    # Beside those that are kept, there is the one that is being written.
    more = KEPT_CHECKPOINTS + 1 - min(len(rows), KEPT_CHECKPOINTS)
    context.settings.checkpoints_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        check_room(context.settings.checkpoints_dir, size * more, context.settings.disk_reserve_bytes)
    except StorageFull as error:
        if failures < context.settings.max_infrastructure_failures:
            raise
        pause_for_room(context, error)


def estimate_checkpoint(base: PreTrainedModel, spec: TrainingSpec) -> int:
    """Return about how many bytes a checkpoint of a run takes: the adapter and its optimiser's state."""
    targets = set(lora_targets(base))
    parameters: int = sum(
        spec.lora_r * (module.in_features + module.out_features)
        for name, module in base.named_modules()
        if name.rpartition(".")[2] in targets
    )
    return parameters * BYTES_OF_A_PARAMETER


def pause_for_room(context: Context, error: StorageFull) -> NoReturn:
    """Have the job pause at its last checkpoint because the disk is full, and end the attempt: raise Paused.

    A job that is given back meanwhile is not paused, because another machine may have room: raises `error`.
    """
    if context.preempted or context.cancelled:
        raise error
    reason = f"on the machine {socket.gethostname()}, {error.message}. Then resume the job"
    with unit_of_work(context.database) as session:
        work = context.lease.load(session)
        if "pause" not in work.args:
            work_service.ask_for_pause(session, work, by="disk", reason=reason)
        else:
            job = repository.load_job(session, work.id)
            repository.add_event(session, job, f"No checkpoint could be saved: {reason}", level="warn")
    context.pause_due = True
    raise Paused(reason) from error
