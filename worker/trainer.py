"""A fine-tuning job from its claim to its end: prepare, reference pass, fit, finalise."""

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app import storage
from app.base_models.service import verify_base_model
from app.database import read_only, unit_of_work
from app.domain import ledger, risk_table
from app.domain.dataset import parse_rows
from app.domain.job import State, model_name
from app.domain.training_spec import ActivationCritic, TrainingSpec
from app.errors import JobFailure
from app.files.service import read_lines
from app.jobs import repository
from app.models.base_model import BaseModel, Critic
from app.models.file import File
from app.models.job import Job
from worker.context import Cancelled, Context, Preempted
from worker.journal import Journal
from worker.publisher import publish, store_adapter
from worker.training.checkpoint import CheckpointDamaged, LoadedCheckpoint, load_checkpoint
from worker.training.critics.protocol import Critic as LoadedCritic
from worker.training.critics.registry import load_critic
from worker.training.data import TokenizedData, tokenize_rows
from worker.training.loop import Checkpoint, Stop, fit, total_steps
from worker.training.models import (
    add_adapter,
    choose_device,
    environment,
    load_base,
    set_determinism,
    template_digest,
)
from worker.training.reference import ReferencePass, RowRisk, run_reference_pass

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2


@dataclass(frozen=True, slots=True)
class Assignment:
    """The rows of the database that say what to do."""

    job: Job
    base: BaseModel
    critic: Critic | None
    training_file: File
    validation_file: File | None
    spec: TrainingSpec
    policy_sha256: str


def train(context: Context) -> None:
    """Do a fine-tuning job. Raises JobFailure or Cancelled for what ends it, Preempted or LeaseLost for what moves it."""
    assignment = load_assignment(context)
    spec = assignment.spec
    verify_base_model(assignment.base)
    if context.settings.threads:
        torch.set_num_threads(context.settings.threads)
    set_determinism(spec.seed)
    device = choose_device()
    base, tokenizer = load_base(Path(assignment.base.path), device=device)
    data = load_rows(context, assignment.training_file, tokenizer, spec, param="training_file")
    validation = None
    if assignment.validation_file is not None:
        validation = load_rows(context, assignment.validation_file, tokenizer, spec, param="validation_file")
    critic = load_job_critic(context, assignment, tokenizer)
    journal = Journal(
        context,
        spec,
        critic_sha256=critic.digest if critic else None,
        policy_sha256=assignment.policy_sha256,
    )
    resume = find_checkpoint(context, assignment.job.id)
    journal.begin(
        from_step=resume.info.step if resume else 0,
        total_steps=total_steps(spec, len(data.rows)),
        checkpoint_sha256=ledger.digest_of(resume.info.files) if resume else None,
        environment={name: ledger.identifier(str(value)) for name, value in environment(device).items()},
        device=ledger.identifier(str(device)),
    )
    reference_pass = measure(context, journal, assignment, base, data, critic)
    model = add_adapter(base, spec, spec.seed)

    def on_checkpoint(checkpoint: Checkpoint) -> None:
        commit_checkpoint(context, journal, assignment.job, checkpoint)

    def should_stop() -> Stop | None:
        context.lease.check()
        return "cancel" if context.cancelled else "preempt" if context.preempted else None

    result = fit(
        model,
        data.rows,
        spec,
        risks=reference_pass.risks,
        cache=reference_pass.cache,
        validation_rows=validation.rows if validation else (),
        resume=resume,
        checkpoint_folder=context.checkpoint_folder,
        on_step=journal.record_step,
        on_checkpoint=on_checkpoint,
        on_validation=journal.record_validation,
        should_stop=should_stop,
    )
    if result.stopped == "cancel":
        raise Cancelled(f"stopped after step {result.steps} of {result.total_steps}")
    if result.stopped == "preempt":
        raise Preempted(f"stopped after step {result.steps} of {result.total_steps}, checkpoint saved")
    context.lease.move(State.FINALISING)
    adapter = store_adapter(context, model, tokenizer, assignment.base, method=spec.safety.method)
    publish(context, journal, adapter)


def load_assignment(context: Context) -> Assignment:
    """Read what the job refers to. Raises JobFailure where something was removed meanwhile."""
    with read_only(context.database) as session:
        job = repository.load_job(session, context.lease.work_id)
        base = session.get_one(BaseModel, job.model)
        critic = session.get(Critic, job.critic_id) if job.critic_id else None
        files = [session.get(File, each) for each in (job.training_file, job.validation_file) if each]
        created = repository.load_created_record(session, job.id)
    return Assignment(
        job=job,
        base=base,
        critic=critic,
        training_file=_present(files[0], "training_file"),
        validation_file=_present(files[1], "validation_file") if len(files) > 1 else None,
        spec=TrainingSpec.model_validate(job.spec),
        policy_sha256=created["body"]["policy_sha256"],
    )


def load_rows(
    context: Context, file: File, tokenizer: PreTrainedTokenizerBase, spec: TrainingSpec, *, param: str
) -> TokenizedData:
    """Read a file from storage and tokenize its rows."""
    with storage.open_stored(context.settings.storage, file.sha256) as stored:
        rows: list[dict[str, Any]] = parse_rows(read_lines(stored))
    return tokenize_rows(
        tokenizer, rows, max_seq_length=spec.max_seq_length, overlength=spec.overlength, param=param
    )


def load_job_critic(
    context: Context, assignment: Assignment, tokenizer: PreTrainedTokenizerBase
) -> LoadedCritic | None:
    """Return the critic of the job, its files checked against their digests."""
    wanted = assignment.spec.safety.critic
    if wanted is None:
        return None
    digests = {"base_digest": assignment.base.digest, "template_digest": template_digest(tokenizer)}
    if not isinstance(wanted, ActivationCritic):
        return load_critic(wanted, folder=None, **digests)
    if assignment.critic is None:
        raise JobFailure(
            f"the critic {wanted.id} of this job is not registered any more", code="critic_not_found"
        )
    with tempfile.TemporaryDirectory(dir=context.settings.home, prefix="critic-") as temporary:
        folder = Path(temporary)
        for name, sha256 in assignment.critic.files.items():
            (folder / name).write_bytes(storage.read_checked(context.settings.storage, sha256))
        return load_critic(wanted, folder=folder, **digests)


def measure(
    context: Context,
    journal: Journal,
    assignment: Assignment,
    base: PreTrainedModel,
    data: TokenizedData,
    critic: LoadedCritic | None,
) -> ReferencePass:
    """Run the reference pass, and commit to the risk of every row.

    A resumed job keeps the risks that it committed to; the pass then only fills the cache again, and the rows
    must be the same.
    """
    key = assignment.training_file.commitment_key
    commitments = {
        row.index: risk_table.row_commitment(key, row.input_ids, row.loss_mask) for row in data.rows
    }
    recorded = journal.load_risks()
    found = run_reference_pass(
        base,
        data.rows,
        None if recorded else critic,
        cache_budget_bytes=context.settings.reference_cache_bytes,
        on_progress=lambda _: context.check(),
    )
    if recorded:
        if {entry.row: entry.commitment for entry in recorded} != commitments:
            raise JobFailure(
                "the rows are no longer the ones that this job recorded; their file, the tokenizer or its"
                " template changed. Submit the job again",
                code="data_changed",
                param="training_file",
            )
        risks = tuple(
            RowRisk(entry.row, entry.log_odds, entry.s, entry.status)  # type: ignore[arg-type]
            for entry in recorded
        )
        return ReferencePass(risks, found.cache)
    points = (assignment.critic.low, assignment.critic.high) if assignment.critic else (None, None)
    journal.record_risks(
        [
            risk_table.RiskRow(risk.row, commitments[risk.row], risk.log_odds, risk.s, risk.status)
            for risk in found.risks
        ],
        dropped=len(data.dropped),
        low=points[0],
        high=points[1],
    )
    return found


def find_checkpoint(context: Context, job_id: str) -> LoadedCheckpoint | None:
    """Return the newest checkpoint whose files are whole; None where the job starts at its beginning."""
    with read_only(context.database) as session:
        rows = repository.list_resumable(session, job_id)
    for row in rows:
        try:
            found = load_checkpoint(context.checkpoint_folder / str(row.folder))
        except CheckpointDamaged as error:
            log.warning("%s: %s", job_id, error.message)
            continue
        if ledger.digest_of(found.info.files) == row.digest:
            return found
        log.warning("%s: the checkpoint %s is not the one that was recorded", job_id, row.folder)
    if rows:
        raise JobFailure(
            "none of the checkpoints of this job can be read any more, so it cannot go on where it was;"
            " submit it again",
            code="checkpoint_lost",
        )
    return None


def commit_checkpoint(context: Context, journal: Journal, job: Job, checkpoint: Checkpoint) -> None:
    """Commit a checkpoint that the loop wrote, and let go of those beyond the last two."""
    info = checkpoint.info
    offered = checkpoint.kind == "epoch"
    name = model_name(job.model, job.suffix, job.id, step=info.step) if offered else None
    journal.record_checkpoint(
        step=info.step, kind=checkpoint.kind, folder=info.path.name, files=info.files, name=name
    )
    with unit_of_work(context.database) as session:
        context.lease.load(session)
        rows = repository.list_resumable(session, job.id)
        kept = {row.folder for row in rows[:KEPT_CHECKPOINTS]}
        old = {row.folder for row in rows} - kept
        for row in rows[KEPT_CHECKPOINTS:]:
            row.folder = None
    for folder in old:
        shutil.rmtree(info.path.parent / str(folder), ignore_errors=True)


def _present(file: File | None, param: str) -> File:
    # Whoever deletes a file that a job needs is refused; this one was deleted while the job was being created.
    if file is None or file.deleted_at is not None:
        raise JobFailure(
            "the file was deleted before the job began; upload it again and submit the job again",
            code="file_not_found",
            param=param,
        )
    return file
