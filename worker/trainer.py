"""A fine-tuning job from its claim to its end: prepare, reference pass, fit, finalise."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from sqlalchemy.orm import Session
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app import storage
from app.base_models.service import verify_base_model
from app.database import read_only, unit_of_work
from app.domain import ledger, risk_table
from app.domain.control_law import compute_s, compute_treatment, fitted_ids
from app.domain.conversion import conversation_of
from app.domain.dataset import read_chat_rows, read_lines
from app.domain.job import model_name
from app.domain.safety_spec import AnySafety, ConstrainedSFT
from app.domain.training_spec import TrainingSpec
from app.errors import CriticUnusable, JobFailure
from app.jobs import repository
from app.models.base_model import BaseModel, Critic
from app.models.file import File
from app.models.job import Job
from app.models.safety_set import SafetySet
from app.work import service as work_service
from worker.context import Cancelled, Context, Paused, Preempted
from worker.critic_loader import load_pinned_critic, scale_of
from worker.gate import Opening, close_gate, open_gate
from worker.journal import Journal, from_older_version
from worker.judge_client import build_judge
from worker.publisher import check_stored, publish, store_adapter
from worker.training.checkpoint import CheckpointDamaged, LoadedCheckpoint, load_adapter_zip, load_checkpoint
from worker.training.compute import count_compute
from worker.training.critics.combined import find_judge, read_texts
from worker.training.critics.judge import Conversation, LiveJudge
from worker.training.critics.protocol import Critic as LoadedCritic
from worker.training.data import TokenizedData, TokenizedRow, tokenize_rows
from worker.training.live import LiveCritic, opening
from worker.training.loop import Checkpoint, Stop, fit, plan_run
from worker.training.models import (
    add_adapter,
    choose_device,
    environment,
    load_base,
    set_determinism,
)
from worker.training.reference import RowRisk
from worker.training.run import Prepared, prepare
from worker.training.step import RunData

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
MAX_DROPPED = 8000
"""Overlong rows of an alignment set that are named on record; as many indices of seven digits fit into a leaf."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The rows of the database that say what to do."""

    job: Job
    base: BaseModel
    fitted: tuple[Critic, ...]
    """The fitted critics that the job's critic reads with or falls back on, in the order in which it names them."""
    anchors: SafetySet | None
    alignment: SafetySet | None
    training_file: File
    validation_file: File | None
    spec: TrainingSpec
    critic_sha256: str | None
    """The critic that the job was created with."""
    policy_sha256: str
    parent_sha256: str | None = None
    """The zip of the adapter that the job goes on from."""


def train(context: Context) -> None:
    """Do a fine-tuning job.

    Raises JobFailure or Cancelled for what ends it, Paused, Preempted or LeaseLost for what moves it. A judge that
    fails too often pauses the job, because it may come back.
    """
    try:
        _train(context)
    except CriticUnusable as error:
        if error.code != "critic_failing":
            raise
        context.pause_due = True
        with unit_of_work(context.database) as session:
            work = context.lease.load(session)
            work_service.ask_for_pause(session, work, by="critic", reason=error.message)
        raise Paused(error.message) from error


def _train(context: Context) -> None:
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
    alignment = load_set(context, assignment.alignment)
    texts = load_texts(context, assignment, data)
    aligned = (
        tokenize_rows(
            tokenizer,
            alignment,
            max_seq_length=spec.max_seq_length,
            overlength="drop",
            param="safety.alignment_file",
        ).rows
        if alignment
        else ()
    )
    critic = load_job_critic(context, assignment, tokenizer)
    journal = Journal(
        context,
        spec,
        critic_sha256=critic.digest if critic else None,
        policy_sha256=assignment.policy_sha256,
    )
    resume = find_checkpoint(context, assignment.job.id)
    context.check()
    journal.begin(
        from_step=resume.info.step if resume else 0,
        total_steps=plan_run(spec, n_rows=len(data.rows), n_alignment=len(aligned)).total_steps,
        checkpoint_sha256=ledger.digest_of(resume.info.files) if resume else None,
        environment={name: ledger.identifier(str(value)) for name, value in environment(device).items()},
        device=ledger.identifier(str(device)),
    )
    run_data = measure(context, journal, assignment, base, tokenizer, data, texts, aligned, critic)
    plan = plan_run(spec, n_rows=len(run_data.rows), n_alignment=len(run_data.alignment))
    journal.plan_steps(plan.total_steps)
    model = add_adapter(base, spec, spec.seed)
    if assignment.parent_sha256 is not None:
        load_adapter_zip(storage.read_checked(context.settings.storage, assignment.parent_sha256), model)

    def on_checkpoint(checkpoint: Checkpoint) -> None:
        adapter_sha256 = None
        if checkpoint.kind == "epoch":
            adapter = store_adapter(context, model, tokenizer, assignment.base, method=spec.safety.method)
            adapter_sha256 = adapter.stored.sha256
        commit_checkpoint(context, journal, assignment.job, checkpoint, adapter_sha256)

    def should_stop() -> Stop | None:
        context.lease.check()
        if context.cancelled:
            return "cancel"
        if context.pausing and journal.begin_pause():
            return "pause"
        return "preempt" if context.preempted else None

    opening = open_gate(context, journal, spec.safety.critic, assignment.fitted, run_data.risks)
    if opening is not None and opening.floor > 0 and isinstance(spec.safety, ConstrainedSFT):
        # Its targets have no more than the labels' probabilities; a KL under every row asks for the reference itself.
        run_data = replace(run_data, cache=run_data.cache.without("user"))
    live = build_live(context, journal, assignment, tokenizer, texts, run_data)
    with closing(live) if live else nullcontext():
        result = fit(
            model,
            run_data,
            spec,
            validation_rows=validation.rows if validation else (),
            resume=resume,
            live=live,
            floor=opening.floor if opening else 0.0,
            checkpoint_folder=context.checkpoint_folder,
            on_step=journal.record_step,
            on_drift=journal.record_drift,
            on_checkpoint=on_checkpoint,
            on_validation=journal.record_validation,
            should_stop=should_stop,
        )
    if result.stopped == "cancel":
        raise Cancelled(f"stopped after step {result.steps} of {result.total_steps}")
    if result.stopped == "pause":
        raise Paused(f"paused after step {result.steps} of {result.total_steps}, checkpoint saved")
    if result.stopped == "preempt":
        raise Preempted(f"stopped after step {result.steps} of {result.total_steps}, checkpoint saved")
    finalise(context, journal, assignment, model, tokenizer, run_data, opening, steps=result.steps)


def finalise(
    context: Context,
    journal: Journal,
    assignment: Assignment,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    data: RunData,
    opening: Opening | None,
    *,
    steps: int,
) -> None:
    """Store the trained adapter, bring it before the policy's gate, check what was stored, and publish it."""
    journal.end_training()
    spec = assignment.spec
    adapter = store_adapter(context, model, tokenizer, assignment.base, method=spec.safety.method)
    compute = count_compute(model, data, spec)
    found = None
    if opening is not None:
        # Only an evaluation puts anything of the data before its prompts.
        rows = read_rows(context, assignment.training_file.sha256) if opening.gate.evaluation else []
        found = close_gate(context, opening, rows, model, tokenizer, step=steps)
    check_stored(context, model, adapter)
    publish(context, journal, adapter, compute, found)


def load_assignment(context: Context) -> Assignment:
    """Read what the job refers to. Raises JobFailure where something was removed, or Tether upgraded, meanwhile."""
    with read_only(context.database) as session:
        job = repository.load_job(session, context.lease.work_id)
        base = session.get_one(BaseModel, job.model)
        safety = TrainingSpec.model_validate(job.spec).safety
        fitted = tuple(load_fitted(session, safety))
        anchors, alignment = (
            session.get_one(SafetySet, set_id) if set_id else None for set_id in set_ids(safety)
        )
        files = [session.get(File, each) for each in (job.training_file, job.validation_file) if each]
        created = repository.load_created_record(session, job.id)
    if ledger.version_of(created) == 1:
        raise from_older_version()
    return Assignment(
        job=job,
        base=base,
        fitted=fitted,
        anchors=anchors,
        alignment=alignment,
        training_file=_present(files[0], "training_file"),
        validation_file=_present(files[1], "validation_file") if len(files) > 1 else None,
        spec=TrainingSpec.model_validate(job.spec),
        critic_sha256=created["body"]["critic"] and created["body"]["critic"]["sha256"],
        policy_sha256=created["body"]["policy_sha256"],
        parent_sha256=(created["body"].get("parent") or {}).get("adapter_sha256"),
    )


def load_fitted(session: Session, safety: AnySafety) -> Iterator[Critic]:
    """Yield the fitted critics that a job was pinned to, in order. Raises JobFailure for one that is not there."""
    for critic_id in fitted_ids(safety.critic.model_dump() if safety.critic else None):
        critic = session.get(Critic, critic_id)
        if critic is None:
            raise JobFailure(
                f"the critic {critic_id} of this job is not registered any more", code="critic_not_found"
            )
        yield critic


def load_rows(
    context: Context, file: File, tokenizer: PreTrainedTokenizerBase, spec: TrainingSpec, *, param: str
) -> TokenizedData:
    """Read a file from storage and tokenize its rows."""
    return tokenize_rows(
        tokenizer,
        read_rows(context, file.sha256),
        max_seq_length=spec.max_seq_length,
        overlength=spec.overlength,
        param=param,
    )


def read_rows(context: Context, sha256: str) -> list[dict[str, Any]]:
    """Read the rows of a stored file as chat rows, its bytes checked against its digest."""
    with storage.open_stored(context.settings.storage, sha256) as stored:
        rows: list[dict[str, Any]] = read_chat_rows(read_lines(stored))
    return rows


def load_texts(context: Context, assignment: Assignment, data: TokenizedData) -> dict[int, Conversation]:
    """Return what a judge reads of each row that is left to train on, by its index; nothing without a judge."""
    if find_judge(assignment.spec.safety.critic) is None:
        return {}
    rows = read_rows(context, assignment.training_file.sha256)
    return {row.index: conversation_of(rows[row.index]) for row in data.rows}


def load_job_critic(
    context: Context, assignment: Assignment, tokenizer: PreTrainedTokenizerBase
) -> LoadedCritic | None:
    """Return the critic of the job; the files of the fitted ones in it are checked against their digests.

    Raises JobFailure where it is not the one that the job was created with.
    """
    safety = assignment.spec.safety
    if safety.critic is None:
        return None
    critic = load_pinned_critic(
        context,
        safety.critic,
        assignment.fitted,
        assignment.base,
        tokenizer,
        s_scale=scale_of(safety),
        judge=build_judge(context.settings) if find_judge(safety.critic) else None,
    )
    if critic.digest != assignment.critic_sha256:
        raise JobFailure(
            "the critic is not the one that this job was created with: the judge's model or its rubric changed, or the"
            " workers' judge is another than the API's. Submit the job again",
            code="critic_changed",
            param="safety.critic",
        )
    return critic


def build_live(
    context: Context,
    journal: Journal,
    assignment: Assignment,
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[int, Conversation],
    data: RunData,
) -> LiveCritic | None:
    """Return the live judge of a job that has one. What fills in for it is what its fallback read of a row.

    It samples the rows that are trained on as they are: nothing that it says can change a row that is replayed.
    """
    safety = assignment.spec.safety
    fields = find_judge(safety.critic)
    if fields is None or fields.mode != "live":
        return None
    fallback = {
        row: compute_s(risk.log_odds[fitted.digest], fitted.low, fitted.high, scale_of(safety))
        for fitted in assignment.fitted
        if fitted.id == fields.fallback
        for row, risk in data.risks.items()
        if fitted.digest in risk.log_odds
    }
    law = safety.model_dump()
    rows = [row for row in data.rows if compute_treatment(law, data.risks[row.index].s) == "own"]
    if not rows:
        return None
    prompts = {row.index: opening(texts[row.index]) for row in rows}
    judge = LiveJudge(build_judge(context.settings), fields, prompts, fallback=fallback)
    return LiveCritic(
        judge, fields, tokenizer, rows, seed=assignment.spec.seed, on_scores=journal.record_live
    )


def load_set(context: Context, registered: SafetySet | None) -> list[dict[str, Any]]:
    """Read the rows of a registered set; none where the job has no such set."""
    return read_rows(context, registered.sha256) if registered else []


def measure(
    context: Context,
    journal: Journal,
    assignment: Assignment,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TokenizedData,
    texts: Mapping[int, Conversation],
    alignment: Sequence[TokenizedRow],
    critic: LoadedCritic | None,
) -> RunData:
    """Run the reference pass, and commit to the risk of every row and to what it is trained on.

    A resumed job keeps the risks that it committed to; the pass then only fills the cache again, and the rows, the
    registered sets and the reference's replies must be the same.
    """
    recorded = {entry.row: entry for entry in journal.load_risks()}
    known = {
        row: RowRisk(row, name_log_odds(assignment, entry), entry.s, entry.status, entry.votes)
        for row, entry in recorded.items()
    } or None
    if known is not None and known.keys() != {row.index for row in data.rows}:
        raise _data_changed()
    if known is None and critic is not None:
        critic = read_texts(critic, texts, on_progress=lambda _: context.check())
    anchors = load_set(context, assignment.anchors)
    found = prepare(
        base,
        tokenizer,
        data.rows,
        assignment.spec,
        critic,
        anchors=anchors,
        alignment=alignment,
        known=known,
        cache_budget_bytes=context.settings.reference_cache_bytes,
        on_progress=lambda _: context.check(),
    )
    entries = risk_entries(assignment, data, found)
    sets = {
        "anchors": describe_anchors(assignment.anchors, found.data),
        "alignment": describe_alignment(assignment.alignment, found.data),
    }
    if recorded:
        if recorded != {entry.row: entry for entry in entries}:
            raise _data_changed()
        check_sets(journal.load_sets(), sets)
        return found.data
    journal.record_reference_pass(
        entries,
        dropped=len(data.dropped),
        fitted=[risk_table.FittedPoints(each.digest, each.low, each.high) for each in assignment.fitted],
        **sets,
    )
    return found.data


def risk_entries(assignment: Assignment, data: TokenizedData, found: Prepared) -> list[risk_table.RiskRow]:
    """Return what is committed of each row: its risk, what becomes of it, and what it is trained on instead."""
    key = assignment.training_file.commitment_key
    if not key:
        raise JobFailure(
            f"the training file {assignment.training_file.id} was erased; train on another file",
            code="invalid_training_file",
            param="training_file",
        )
    law = assignment.spec.safety.model_dump()
    entries = []
    for row, risk in zip(data.rows, found.risks, strict=True):
        replay = found.replayed.get(row.index)
        entries.append(
            risk_table.RiskRow(
                row.index,
                commit_row(key, row),
                tuple(risk.log_odds.get(fitted.digest) for fitted in assignment.fitted),
                risk.s,
                risk.status,
                compute_treatment(law, risk.s),
                commit_row(key, replay) if replay else None,
                risk.votes,
            )
        )
    return entries


def name_log_odds(assignment: Assignment, entry: risk_table.RiskRow) -> dict[str, float]:
    """Return the readings of a recorded row by the digests of the critics, as a reference pass has them."""
    pairs = zip(assignment.fitted, entry.log_odds, strict=True)
    return {fitted.digest: log_odds for fitted, log_odds in pairs if log_odds is not None}


def set_ids(safety: AnySafety) -> tuple[str | None, str | None]:
    """Return the ids of the registered sets that a job was pinned to: its anchors and its alignment data."""
    anchors = next((each.id for each in (safety.anchors, safety.monitor) if each is not None), None)
    return anchors, getattr(safety, "alignment_file", None)


def describe_anchors(registered: SafetySet | None, data: RunData) -> dict[str, Any] | None:
    """Return the body of the leaf `anchors`: the set, and what of it is trained on and watched."""
    if registered is None:
        return None
    trained, monitored = (
        [{"row": row.index, "commitment": commit_row(registered.commitment_key, row)} for row in rows]
        for rows in (data.anchors, data.monitored)
    )
    return {
        "id": registered.id,
        "sha256": registered.sha256,
        "rows": registered.rows,
        "trained": trained,
        "monitored": monitored,
    }


def describe_alignment(registered: SafetySet | None, data: RunData) -> dict[str, Any] | None:
    """Return the body of the leaf `alignment`: the set, and which of its rows were too long.

    Raises JobFailure where they are too many for a leaf.
    """
    if registered is None:
        return None
    kept = {row.index for row in data.alignment}
    dropped = [row for row in range(registered.rows) if row not in kept]
    if len(dropped) > MAX_DROPPED:
        raise JobFailure(
            f"{len(dropped)} of {registered.rows} rows of the set {registered.id} are longer than max_seq_length;"
            f" the record has room for {MAX_DROPPED}. Raise max_seq_length, or register a set of shorter rows",
            param="safety.alignment_file",
        )
    return {
        "id": registered.id,
        "sha256": registered.sha256,
        "rows": registered.rows,
        "dropped": dropped,
    }


def check_sets(
    recorded: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Any] | None]
) -> None:
    """Raise JobFailure unless the registered sets are, and the reference replies to them, as an earlier attempt recorded."""
    for name, body in found.items():
        if body != recorded.get(name):
            raise JobFailure(
                f"the {name} are no longer what this job recorded: their set, the base model's replies, the tokenizer or"
                " its template changed. Submit the job again",
                code="data_changed",
                param="safety.alignment_file" if name == "alignment" else "safety.anchors",
            )


def commit_row(key: bytes, row: TokenizedRow) -> str:
    """Return the commitment of a row under the key of its dataset."""
    return risk_table.row_commitment(key, row.input_ids, row.loss_mask)


def _data_changed() -> JobFailure:
    return JobFailure(
        "the rows are no longer the ones that this job recorded; their file, the tokenizer or its template changed."
        " Submit the job again",
        code="data_changed",
        param="training_file",
    )


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


def commit_checkpoint(
    context: Context, journal: Journal, job: Job, checkpoint: Checkpoint, adapter_sha256: str | None
) -> None:
    """Commit a checkpoint that the loop wrote, and let go of those beyond the last two.

    One whose adapter was stored gets a name, under which the client finds it once the job has succeeded.
    """
    info = checkpoint.info
    name = model_name(job.model, job.suffix, job.id, step=info.step) if adapter_sha256 else None
    journal.record_checkpoint(
        step=info.step,
        kind=checkpoint.kind,
        folder=info.path.name,
        files=info.files,
        name=name,
        adapter_sha256=adapter_sha256,
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
            "the file was deleted or has expired before the job began; upload it again and submit the job again",
            code="file_not_found",
            param=param,
        )
    return file
