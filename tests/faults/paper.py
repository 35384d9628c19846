"""Training on paper: a job as the trainer does it, with its journal, checkpoints and publisher, and other mathematics.

A step multiplies one weight and adds to it, so that the adapter at the end says which steps made it, each once and in order.
"""

import hashlib
import struct
from collections.abc import Callable
from typing import Any

import torch

from app import storage
from app.domain import ledger
from app.domain.canary import Canary
from app.domain.control_law import MonitorState
from app.domain.learning_rate import lr_multiplier
from app.domain.risk_table import constant_row
from app.domain.step_record import StepRecord
from app.domain.training_spec import TrainingSpec
from app.garbage import collect_machine
from worker.assignment import Assignment, load_assignment
from worker.checkpoints import commit_checkpoint, find_checkpoint
from worker.context import Cancelled, Context, Paused, Preempted
from worker.journal import Journal
from worker.publisher import StoredAdapter, publish
from worker.training.checkpoint import TrainerState, restore_adapter, save_checkpoint
from worker.training.loop import Checkpoint, plan_run
from worker.training.methods.plain import Method

ROWS = 10
"""As `add_job` has them."""
CHECKPOINT_EVERY = 2
COUNTED = (
    "parameters",
    "adapter_parameters",
    "layers",
    "hidden_size",
    "reference_tokens",
    "reference_squares",
    "training_tokens",
    "training_squares",
)


def train(context: Context, before_record: Callable[[int], None]) -> None:
    """Do a job. `before_record` is called when a step is done and not yet on record, and may raise."""
    collect_machine(context.database, context.settings)
    assignment = load_assignment(context)
    spec, job_id = assignment.spec, assignment.job.id
    journal = Journal(
        context, spec, critic_sha256=assignment.critic_sha256, policy_sha256=assignment.policy_sha256
    )
    resume = find_checkpoint(context, journal, job_id)
    context.check()
    plan = plan_of(spec)
    step = saved = resume.info.step if resume else 0
    journal.begin(
        from_step=step,
        total_steps=plan.total_steps,
        checkpoint_sha256=ledger.digest_of(resume.info.files) if resume else None,
        environment={},
        device="cpu",
        micro_batch_tokens=4096,
    )
    if not journal.load_risks():
        rows = [constant_row(row, f"{row:064x}", 0.0) for row in range(ROWS)]
        journal.record_reference_pass(rows, dropped=0, fitted=[], anchors=None, alignment=None)
    model: Any = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    if resume is not None:
        restore_adapter(resume, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def save(kind: Any) -> None:
        state = TrainerState(step, spec.seed, job_id, MonitorState(), None, {}, ())
        info = save_checkpoint(context.checkpoint_folder, model, optimizer, state)
        checkpoint = Checkpoint(info, kind, plan.plan(step).data_epoch)
        commit_checkpoint(context, journal, assignment.job, checkpoint, None)

    while step < plan.total_steps:
        why = find_stop(context, journal)
        if why is not None:
            if step > saved and not isinstance(why, Cancelled):
                save("preempt")
            raise why
        step += 1
        with torch.no_grad():
            model.weight.copy_(after_step(spec, model.weight, step))
        before_record(step)
        journal.record_step(step_record(spec, plan, step))
        if step % CHECKPOINT_EVERY == 0 or step == plan.total_steps:
            save("epoch" if step == plan.total_steps else "interval")
            saved = step
    journal.end_training()
    publish(context, journal, store(context, assignment, model.weight), dict.fromkeys(COUNTED, 1))


def find_stop(context: Context, journal: Journal) -> Exception | None:
    """Return why the work is to stop between two steps, as the trainer asks it."""
    context.lease.check()
    if context.cancelled:
        return Cancelled("cancelled")
    if context.pausing and journal.begin_pause():
        return Paused("paused")
    return Preempted("told to stop") if context.preempted else None


def store(context: Context, assignment: Assignment, weight: torch.Tensor) -> StoredAdapter:
    """Put the adapter into storage."""
    packed = struct.pack("<d", weight.item())
    path = context.settings.home / f"{context.lease.work_id}-{context.lease.epoch}.zip"
    path.write_bytes(packed)
    base = {"name": assignment.base.name, "revision": None, "sha256": assignment.base.digest}
    return StoredAdapter(
        storage.store_file(context.settings.storage, path),
        {"adapter_model.safetensors": hashlib.sha256(packed).hexdigest()},
        base,
        Canary((1,), (2,), (-0.5,), (-0.25,)),
    )


def plan_of(spec: TrainingSpec) -> Method:
    """Return the plan of a job."""
    return plan_run(spec, n_rows=ROWS, n_alignment=0)


def after_step(spec: TrainingSpec, weight: torch.Tensor, step: int) -> torch.Tensor:
    """Return the weight after a step: another one for each order and number of steps before it."""
    return weight * 1.25 + step + spec.seed


def undisturbed(spec: TrainingSpec) -> str:
    """Return the digest of the adapter of a run to which nothing happens."""
    weight = torch.zeros(1, 1, dtype=torch.float64)
    for step in range(1, plan_of(spec).total_steps + 1):
        weight = after_step(spec, weight, step)
    return hashlib.sha256(struct.pack("<d", weight.item())).hexdigest()


def step_record(spec: TrainingSpec, plan: Method, step: int) -> StepRecord:
    """Return what a step reports that a verifier can hold against the plan."""
    planned = plan.plan(step)
    factor = lr_multiplier(
        step, total_steps=plan.total_steps, warmup_ratio=spec.warmup_ratio, kind=spec.lr_scheduler
    )
    return StepRecord(
        step=step,
        data_epoch=planned.data_epoch,
        rows=planned.rows,
        tokens=10,
        risk_mean=0.0,
        risk_max=0.0,
        alpha_mean=1.0,
        alpha_min=1.0,
        beta_mean=0.0,
        beta_max=0.0,
        floor=0.0,
        nll=0.5,
        kl=None,
        loss=0.5,
        token_accuracy=0.5,
        grad_norm=0.5,
        lr=spec.learning_rate * factor,
    )
