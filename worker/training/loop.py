"""The training loop: steps, resume, the monitor, validation, checkpoints. What a step does is in `step.py`."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from app.domain.control_law import MonitorState, compute_monitor_state
from app.domain.learning_rate import lr_multiplier
from app.domain.safety_spec import AdaptiveKL, Filter
from app.domain.step_plan import Layout, anchor_places
from app.domain.step_record import StepRecord
from app.domain.training_spec import TrainingSpec
from app.errors import CriticUnusable, JobFailure
from worker.training.checkpoint import (
    CheckpointDamaged,
    CheckpointInfo,
    LoadedCheckpoint,
    TrainerState,
    restore,
    save_checkpoint,
)
from worker.training.data import TokenizedRow
from worker.training.jsonio import canonical_json
from worker.training.live import LiveCritic
from worker.training.lora import use_lean_lora
from worker.training.loss import head_nll, log_probabilities
from worker.training.methods.plain import Method
from worker.training.methods.registry import build_method
from worker.training.models import (
    final_states,
    full_logits,
    head_of,
    trainable_parameters,
    traits_of,
)
from worker.training.monitor import measure_drift
from worker.training.packing import Batch, collate, micro_batches
from worker.training.step import Conditions, Controls, RunData, train_step

Stop = Literal["cancel", "pause", "preempt"]
DEFAULT_MICRO_BATCH_TOKENS = 4096
"""How a step is cut changes what memory it needs, and its result by rounding alone."""
MAX_SKIPPED_IN_A_ROW = 2


class Checkpoint(NamedTuple):
    """A checkpoint that the loop has just written."""

    info: CheckpointInfo
    kind: Literal["interval", "epoch", "preempt"]
    """interval: to resume from. epoch: the end of a pass over the data. preempt: before the run stops for a while."""
    data_epoch: int
    """The pass that its last step belongs to, from 0."""


class Drift(NamedTuple):
    """A measurement of the run-level monitor, and what came of it."""

    step: int
    kl: float
    """Mean KL(reference‖model) on prompts kept apart, in nats a token."""
    state: MonitorState
    """What holds for the steps after it."""


class Progress(NamedTuple):
    """Where a run stands between two steps."""

    steps: int = 0
    skipped_in_a_row: tuple[int, ...] = ()
    """The steps just before that were skipped, if any."""
    controls: Controls = Controls()


class FitResult(NamedTuple):
    """How a run ended."""

    steps: int
    """Steps done, those before a resume included."""
    total_steps: int
    stopped: Stop | None
    """None where every step was done."""


def _ignore(*_: object) -> None:
    pass


def _never_stop() -> Stop | None:
    return None


def plan_run(spec: TrainingSpec, *, n_rows: int, n_alignment: int) -> Method:
    """Return the method of a run over `n_rows` user rows that are trained on and `n_alignment` of a set."""
    layout = Layout(n_rows, n_alignment, spec.batch_size, spec.n_epochs, spec.seed)
    return build_method(spec.safety, layout)


def fit(
    model: PeftModel,
    data: RunData,
    spec: TrainingSpec,
    *,
    validation_rows: Sequence[TokenizedRow] = (),
    resume: LoadedCheckpoint | None = None,
    live: LiveCritic | None = None,
    floor: float = 0.0,
    checkpoint_folder: Path | None = None,
    disk_reserve_bytes: int = 0,
    on_step: Callable[[StepRecord], None] = _ignore,
    on_drift: Callable[[Drift], None] = _ignore,
    on_checkpoint: Callable[[Checkpoint], None] = _ignore,
    on_validation: Callable[[int, float, float], None] = _ignore,
    should_stop: Callable[[], Stop | None] = _never_stop,
    clock: Callable[[], float] = time.monotonic,
    micro_batch_tokens: int = DEFAULT_MICRO_BATCH_TOKENS,
) -> FitResult:
    """Train the adapter of `model` by `spec` and leave the trained weights in it.

    `resume` continues the run that wrote it, on the same machine with the same bits. `should_stop` is asked before
    each step: "cancel" ends the run, "pause" and "preempt" first write a checkpoint. `live` is asked before each step
    what a judge has said meanwhile, and samples after it; where it raises, a checkpoint comes first. After each step come `on_step`, after the last one what the method does
    at the end, then `on_drift` where the monitor measures, then `on_validation(step, loss, token_accuracy)` every `eval_interval`
    steps and at the end, then `on_checkpoint`: at the end of each data epoch, and whenever
    `checkpoint_interval_s` have passed on `clock`. Without a `checkpoint_folder` none are written.
    One that would leave less than `disk_reserve_bytes` on its disk is not written, and raises StorageFull.

    `floor` is the least beta of every row, whatever the monitor's is.

    A step whose loss or gradient is not finite is skipped. Raises JobFailure with code `nonfinite_loss` after three of
    them in a row, or `training_failed` where the data lack what the method needs, and CheckpointDamaged where
    `resume` belongs to another run.
    """
    _check_data(data, spec)
    method = plan_run(spec, n_rows=len(data.rows), n_alignment=len(data.alignment))
    conditions = Conditions(
        data=data,
        safety=spec.safety,
        law=spec.safety.model_dump(),
        method=method,
        separable_head=traits_of(model).separable_head,
        packed=traits_of(model).packed,
        max_grad_norm=spec.max_grad_norm,
        micro_batch_tokens=micro_batch_tokens,
    )
    optimizer = torch.optim.AdamW(
        trainable_parameters(model).values(), lr=spec.learning_rate, weight_decay=spec.weight_decay
    )
    saver = _Saver(
        checkpoint_folder, on_checkpoint, compute_run_digest(spec, data), clock, disk_reserve_bytes
    )
    progress = Progress()
    if resume is not None:
        progress = _resume(resume, saver.run_digest, model, optimizer, conditions)
        saver.saved_step = progress.steps
    n_steps = method.total_steps
    while progress.steps < n_steps:
        stop = should_stop()
        if stop in ("pause", "preempt"):
            saver.save("preempt", model, optimizer, method, progress)
        if stop is not None:
            return FitResult(progress.steps, n_steps, stop)
        step = progress.steps + 1
        plan = method.plan(step)
        try:
            controls = progress.controls if live is None else live.collect(step, progress.controls)
        except CriticUnusable:
            saver.save("preempt", model, optimizer, method, progress)
            raise
        factor = lr_multiplier(
            step, total_steps=n_steps, warmup_ratio=spec.warmup_ratio, kind=spec.lr_scheduler
        )
        with use_lean_lora(model):
            record, smoothed = train_step(
                model,
                optimizer,
                plan,
                anchor_places(conditions.law, step, n_anchors=len(data.anchors), seed=spec.seed),
                conditions,
                raise_floor(controls, floor),
                step=step,
                lr=spec.learning_rate * factor,
            )
        on_step(record)
        skipped = (*progress.skipped_in_a_row, step) if record.skipped else ()
        if len(skipped) > MAX_SKIPPED_IN_A_ROW:
            raise _diverged(record, skipped)
        is_last = step == n_steps
        if is_last:
            method.finish(model, data.alignment)
        state = controls.monitor
        if spec.safety.monitor and step % spec.safety.monitor.every == 0:
            kl = measure_drift(model, conditions)
            state = compute_monitor_state(conditions.law["monitor"], kl, state)
            on_drift(Drift(step, kl, state))
        progress = Progress(step, skipped, Controls(state, smoothed, controls.live))
        if live is not None and not is_last:
            live.sample(model, step)
        if validation_rows and (step % spec.eval_interval == 0 or is_last):
            on_validation(step, *validate(model, validation_rows, micro_batch_tokens=micro_batch_tokens))
        if is_last or method.plan(step + 1).data_epoch != plan.data_epoch:
            saver.save("epoch", model, optimizer, method, progress)
        elif saver.seconds_since >= spec.checkpoint_interval_s:
            saver.save("interval", model, optimizer, method, progress)
    return FitResult(n_steps, n_steps, None)


def raise_floor(controls: Controls, floor: float) -> Controls:
    """Return the controls of a step whose floor is the higher one of the monitor's and this."""
    monitor = controls.monitor
    return controls._replace(monitor=monitor._replace(floor=max(monitor.floor, floor)))


@torch.no_grad()
def validate(
    model: PeftModel,
    rows: Sequence[TokenizedRow],
    *,
    micro_batch_tokens: int = DEFAULT_MICRO_BATCH_TOKENS,
) -> tuple[float, float]:
    """Return the mean NLL in nats and the greedy accuracy over the loss-bearing tokens of `rows`, adapter on."""
    sums = torch.zeros(2, dtype=torch.float64, device=next(model.parameters()).device)
    for _, _, nll, correct in token_losses(model, rows, micro_batch_tokens):
        sums += torch.stack([nll.double().sum(), correct.double().sum()])
    loss, accuracy = (sums / sum(row.loss_tokens for row in rows)).tolist()
    return loss, accuracy


def token_losses(
    model: PreTrainedModel | PeftModel, rows: Sequence[TokenizedRow], micro_batch_tokens: int
) -> Iterator[tuple[list[int], Batch, Tensor, Tensor]]:
    """Yield micro-batches: the places of their rows, and (n,) NLL in nats and greedy hits of the loss-bearing tokens."""
    device = next(model.parameters()).device
    head = head_of(model) if traits_of(model).separable_head else None
    packed = traits_of(model).packed
    for places in micro_batches([len(row.input_ids) for row in rows], micro_batch_tokens, packed=packed):
        batch = collate([rows[place] for place in places], device, packed=packed)
        if head is not None:
            nll, correct = head_nll(final_states(model, batch)[batch.predecessors], head, batch.labels)
        else:
            log_p = log_probabilities(full_logits(model, batch)[batch.predecessors])
            nll = -log_p.gather(-1, batch.labels[:, None]).squeeze(-1)
            correct = log_p.argmax(dim=-1) == batch.labels
        yield places, batch, nll, correct


def compute_run_digest(spec: TrainingSpec, data: RunData) -> str:
    """Return the SHA-256 of what decides a run's course: the specification and all its tokenized rows, in hex."""
    digest = hashlib.sha256(canonical_json(spec.model_dump()))
    for rows in (data.rows, data.anchors, data.monitored, data.alignment):
        digest.update(canonical_json(len(rows)))
        for row in rows:
            digest.update(canonical_json([row.index, row.input_ids, [int(bears) for bears in row.loss_mask]]))
    return digest.hexdigest()


class _Saver:
    """Writes checkpoints, each state once, where there is a folder for them."""

    def __init__(
        self,
        folder: Path | None,
        on_checkpoint: Callable[[Checkpoint], None],
        run_digest: str,
        clock: Callable[[], float],
        reserve_bytes: int,
    ) -> None:
        self.run_digest = run_digest
        self.saved_step = 0
        self._folder = folder
        self._on_checkpoint = on_checkpoint
        self._clock = clock
        self._reserve_bytes = reserve_bytes
        self._saved_at = clock()

    @property
    def seconds_since(self) -> float:
        """Seconds since the last checkpoint at the end of an epoch or an interval, or the beginning."""
        return self._clock() - self._saved_at

    def save(
        self,
        kind: Literal["interval", "epoch", "preempt"],
        model: PeftModel,
        optimizer: torch.optim.Optimizer,
        method: Method,
        progress: Progress,
    ) -> None:
        step = progress.steps
        # The state after a step is saved once; before the first step there is none.
        if self._folder is not None and step != self.saved_step:
            state = TrainerState(
                step,
                method.layout.seed,
                self.run_digest,
                *progress.controls,
                progress.skipped_in_a_row,
            )
            info = save_checkpoint(
                self._folder, model, optimizer, state, method.state(), reserve_bytes=self._reserve_bytes
            )
            self.saved_step = step
            self._on_checkpoint(Checkpoint(info, kind, method.plan(step).data_epoch))
        if kind != "preempt":
            self._saved_at = self._clock()


def _resume(
    checkpoint: LoadedCheckpoint,
    run_digest: str,
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    conditions: Conditions,
) -> Progress:
    state = checkpoint.trainer
    if state.run_digest != run_digest:
        raise CheckpointDamaged(
            f"the checkpoint {checkpoint.info.path.name} belongs to a run with other data or another specification"
        )
    restore(checkpoint, model, optimizer)
    conditions.method.load_state(checkpoint.method)
    controls = Controls(state.monitor, state.smoothed, state.live)
    return Progress(state.step, state.skipped_in_a_row, controls)


def _check_data(data: RunData, spec: TrainingSpec) -> None:
    safety = spec.safety
    for row in data.rows:
        if row.index not in data.risks:
            raise JobFailure(f"row {row.index} has no risk; run the reference pass over all rows first")
        if isinstance(safety, AdaptiveKL | Filter) and data.risks[row.index].s is None:
            raise JobFailure(f"row {row.index} was not measured by any critic, which {safety.method} needs")
    if not data.rows:
        raise JobFailure(
            "no row is left to train on: every one is above the threshold from which the method drops it"
        )
    if safety.anchors is not None and not data.anchors:
        raise JobFailure("the job has anchors, but no anchor prompt was given")
    if safety.monitor is not None and not data.monitored:
        raise JobFailure("the job has a monitor, but no prompt to watch was given")
    if hasattr(safety, "alignment_file") and not data.alignment:
        raise JobFailure(f"the method {safety.method} needs alignment data, and none were given")


def _diverged(record: StepRecord, skipped: Sequence[int]) -> JobFailure:
    indices = ", ".join(map(str, (*record.rows, *record.alignment_rows)))
    return JobFailure(
        f"steps {skipped[0]} to {skipped[-1]} had no finite loss and gradient; at step {record.step} the loss is"
        f" {record.loss} and the gradient norm {record.grad_norm} on rows {indices}; lower learning_rate or look at"
        " these rows",
        code="nonfinite_loss",
    )
