"""A fine-tuning job from its claim to its end: prepare, reference pass, fit, finalise."""

import logging
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from app import storage
from app.database import unit_of_work
from app.domain import ledger
from app.domain.control_law import compute_s, compute_treatment
from app.domain.conversion import conversation_of
from app.domain.safety_spec import ConstrainedSFT
from app.domain.training_spec import TrainingSpec
from app.errors import CriticUnusable, JobFailure, StorageFull
from app.garbage import collect_machine
from app.models.file import File
from app.work import service as work_service
from worker.assignment import Assignment, load_assignment, load_set, read_rows
from worker.checkpoints import (
    check_room_to_begin,
    commit_checkpoint,
    estimate_checkpoint,
    find_checkpoint,
    pause_for_room,
    tell_surroundings,
)
from worker.context import Cancelled, Context, Paused, Preempted
from worker.critic_loader import load_pinned_critic, scale_of
from worker.gate import Opening, close_gate, open_gate
from worker.journal import Journal
from worker.judge_client import build_judge
from worker.measuring import measure
from worker.progress import mark_forwards, micro_batch_tokens
from worker.publisher import check_stored, publish, store_adapter
from worker.training.adapter import load_adapter_zip
from worker.training.compute import count_compute
from worker.training.critics.combined import find_judge
from worker.training.critics.judge import Conversation, LiveJudge
from worker.training.critics.protocol import Critic as LoadedCritic
from worker.training.data import TokenizedData, tokenize_rows
from worker.training.live import LiveCritic, opening
from worker.training.loop import Checkpoint, FitResult, Stop, fit, plan_run
from worker.training.models import (
    add_adapter,
    choose_device,
    environment,
    load_base,
    set_determinism,
)
from worker.training.step import RunData

log = logging.getLogger(__name__)


def train(context: Context) -> None:
    """Do a fine-tuning job.

    Raises JobFailure or Cancelled for what ends it, Paused, Preempted or LeaseLost for what moves it. A judge that
    fails too often pauses the job, because it may come back, and so does a disk without room for the next checkpoint.
    """
    _tidy(context)
    check_room_to_begin(context)
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


def _tidy(context: Context) -> None:
    try:
        collect_machine(context.database, context.settings)
    except Exception:
        # What cannot be tidied takes room, and that is looked at next.
        log.exception("what old jobs left on this machine could not be tidied")


def _train(context: Context) -> None:
    assignment = load_assignment(context)
    spec = assignment.spec
    if context.settings.threads:
        torch.set_num_threads(context.settings.threads)
    set_determinism(spec.seed)
    device = choose_device()
    base, tokenizer = load_base(Path(assignment.base.path), device=device, files=assignment.base.files)
    mark_forwards(context, base)
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
            on_progress=context.check,
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
    resume = find_checkpoint(context, journal, assignment.job.id)
    check_room_to_begin(context, estimate_checkpoint(base, spec))
    context.check()
    surroundings = {name: ledger.identifier(str(value)) for name, value in environment(device).items()}
    journal.begin(
        from_step=resume.info.step if resume else 0,
        total_steps=plan_run(spec, n_rows=len(data.rows), n_alignment=len(aligned)).total_steps,
        checkpoint_sha256=ledger.digest_of(resume.info.files) if resume else None,
        environment=surroundings,
        device=ledger.identifier(str(device)),
        micro_batch_tokens=micro_batch_tokens(context),
    )
    tell_surroundings(context, surroundings, ledger.identifier(str(device)))
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
    try:
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
                disk_reserve_bytes=context.settings.disk_reserve_bytes,
                on_step=journal.record_step,
                on_drift=journal.record_drift,
                on_checkpoint=on_checkpoint,
                on_validation=journal.record_validation,
                should_stop=should_stop,
                micro_batch_tokens=micro_batch_tokens(context),
            )
    except StorageFull as error:
        pause_for_room(context, error)
    leave_if_stopped(result)
    finalise(context, journal, assignment, model, tokenizer, run_data, opening, steps=result.steps)


def leave_if_stopped(result: FitResult) -> None:
    """Raise what ends an attempt whose run was stopped: Cancelled, Paused or Preempted."""
    done = f"after step {result.steps} of {result.total_steps}"
    if result.stopped == "cancel":
        raise Cancelled(f"stopped {done}")
    if result.stopped == "pause":
        raise Paused(f"paused {done}, checkpoint saved")
    if result.stopped == "preempt":
        raise Preempted(f"stopped {done}, checkpoint saved")


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
        on_progress=context.check,
    )


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
