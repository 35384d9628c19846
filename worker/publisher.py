"""From trained weights to what a client downloads: the adapter's zip and the table of metrics."""

import csv
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from sqlalchemy.orm import Session
from transformers import PreTrainedTokenizerBase

from app import storage
from app.database import read_only, unit_of_work
from app.domain.canary import Canary
from app.domain.job import Desired, State, model_name
from app.failpoints import failpoint
from app.files.service import RESULTS, add_file, note_unwanted
from app.jobs import repository
from app.models.base_model import BaseModel
from app.models.job import Step
from app.models.work import Work
from app.work import service as work_service
from worker.context import Cancelled, Context
from worker.gate import Closing, refused
from worker.journal import Journal
from worker.training.adapter import build_adapter_zip, export_adapter, hash_files
from worker.training.canary import check_reloaded, measure_canary, reload_canary

METRICS_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """An adapter's zip in storage, and what the record says of it."""

    stored: storage.Stored
    files: dict[str, str]
    """The SHA-256 of each file in it."""
    base: dict[str, str | None]
    """Name, revision and digest of the base model."""
    canary: Canary


def store_adapter(
    context: Context, model: PeftModel, tokenizer: PreTrainedTokenizerBase, base: BaseModel, method: str
) -> StoredAdapter:
    """Export the adapter as it is now, pack it and put it into storage. The same weights give the same bytes."""
    with tempfile.TemporaryDirectory(dir=context.settings.home, prefix="export-") as temporary:
        folder = Path(temporary) / "adapter"
        canary = measure_canary(model, tokenizer)
        export_adapter(
            model,
            tokenizer,
            folder,
            base_name=base.name,
            base_digest=base.digest,
            base_revision=base.revision,
            method=method,
            canary=canary,
        )
        packed = Path(temporary) / "adapter.zip"
        build_adapter_zip(folder, packed)
        named = {"name": base.name, "revision": base.revision, "sha256": base.digest}
        stored = storage.store_file(context.settings.storage, packed)
        return StoredAdapter(stored, hash_files(folder), named, canary)


def check_stored(context: Context, model: PeftModel, adapter: StoredAdapter) -> None:
    """Load a stored adapter as whoever downloads it does, onto the same base, and compare it with what was trained.

    `model` is good for nothing afterwards: its base has gone to the adapter that was loaded. Raises JobFailure where the two
    differ, or the zip cannot be loaded.
    """
    data = storage.read_checked(context.settings.storage, adapter.stored.sha256)
    with tempfile.TemporaryDirectory(dir=context.settings.home, prefix="reload-") as temporary:
        found = reload_canary(model, data, Path(temporary), adapter.canary)
    check_reloaded(adapter.canary.tuned, found)


def publish(
    context: Context,
    journal: Journal,
    adapter: StoredAdapter,
    compute: dict[str, int],
    gate: Closing | None = None,
) -> None:
    """Record the adapter, make the result files, and end the job as succeeded, all in one transaction.

    What the policy's gate found comes first; where it refuses the job, that ends it as failed and nothing is published.
    Raises Cancelled where that was asked for before: whoever was told that the job will be cancelled can rely on it.
    What was stored for nothing is let go.
    """
    with read_only(context.database) as session:
        job = repository.load_job(session, context.lease.work_id)
        metrics = metrics_csv(repository.list_steps(session, job, after=0, limit=None))
    stored_metrics = storage.store_stream(context.settings.storage, io.BytesIO(metrics))
    results = {"metrics.csv": stored_metrics, "adapter.zip": adapter.stored}
    is_published = False
    try:
        with unit_of_work(context.database) as session:
            work = context.lease.load(session)
            if work.desired == Desired.CANCEL:
                raise Cancelled("cancelled by the client before its adapter was published")
            is_published = _passes(session, journal, work, gate)
            if is_published:
                journal.append_published(session, job.step, adapter, compute)
                _add_results(session, work, adapter, results)
                work_service.end(session, work, State.SUCCEEDED, None)
                failpoint("publish.before_commit")
        failpoint("publish.after_commit")
    except Cancelled:
        _let_go(context, job.project_id, results)
        raise
    if not is_published:
        _let_go(context, job.project_id, results)


def _passes(session: Session, journal: Journal, work: Work, gate: Closing | None) -> bool:
    """Record what the gate found, and end the job as failed where that refuses it; say whether it does not."""
    if gate is None:
        return True
    journal.append_gate(session, gate)
    if gate.verdict != "fail":
        return True
    error = refused(gate.limits)
    found = {"code": error.code, "message": error.message, "param": error.param}
    work_service.end(session, work, State.FAILED, found)
    return False


def _add_results(
    session: Session, work: Work, adapter: StoredAdapter, results: Mapping[str, storage.Stored]
) -> None:
    job = repository.load_job(session, work.id)
    job.result_files = [
        add_file(
            session,
            project_id=job.project_id,
            filename=name,
            purpose=RESULTS,
            stored=stored,
            job_id=job.id,
        ).id
        for name, stored in results.items()
    ]
    job.adapter_sha256 = adapter.stored.sha256
    job.adapter_bytes = adapter.stored.size_bytes
    job.fine_tuned_model = model_name(job.model, job.suffix, job.id)


def _let_go(context: Context, project_id: str, results: Mapping[str, storage.Stored]) -> None:
    for name, stored in results.items():
        note_unwanted(context.database, project_id, name, RESULTS, stored)


def metrics_csv(steps: Sequence[Step]) -> bytes:
    """Return the wire's table of metrics as plain CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(METRICS_COLUMNS)
    for step in steps:
        validation: dict[str, Any] = step.validation or {}
        writer.writerow(
            [
                step.step,
                step.record["nll"],
                step.record["token_accuracy"],
                validation.get("valid_loss", ""),
                validation.get("valid_mean_token_accuracy", ""),
            ]
        )
    return text.getvalue().encode("utf-8")
