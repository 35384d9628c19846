"""The training loop: epochs, resume, validation, checkpoints. What a step does is in `step.py`."""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from peft import PeftModel

from app.domain.step_record import StepRecord
from app.domain.training_spec import AdaptiveKL, TrainingSpec
from app.errors import JobFailure
from worker.training.batching import collate, micro_batches, step_rows, steps_per_epoch
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
from worker.training.loss import log_probabilities
from worker.training.models import head_is_separable, trainable_parameters
from worker.training.reference import ReferenceCache, RowRisk
from worker.training.schedule import lr_multiplier
from worker.training.step import Conditions, batch_logits, train_step

Stop = Literal["cancel", "preempt"]
DEFAULT_MICRO_BATCH_TOKENS = 4096


class Checkpoint(NamedTuple):
    """A checkpoint that the loop has just written."""

    info: CheckpointInfo
    kind: Literal["interval", "epoch", "preempt"]
    """interval: to resume from. epoch: the end of a pass over the data. preempt: before giving the work back."""
    data_epoch: int
    """The pass that its last step belongs to, from 0."""


class FitResult(NamedTuple):
    """How a run ended."""

    steps: int
    """Steps done, those before a resume included."""
    total_steps: int
    trained_tokens: int
    """All tokens of the rows trained on, prompts included, once per pass."""
    stopped: Stop | None
    """None where every step was done."""


def _ignore(*_: object) -> None:
    pass


def _never_stop() -> Stop | None:
    return None


def total_steps(spec: TrainingSpec, n_rows: int) -> int:
    """Return how many optimiser steps a run of `n_rows` rows takes."""
    return spec.n_epochs * steps_per_epoch(n_rows, spec.batch_size)


def fit(
    model: PeftModel,
    rows: Sequence[TokenizedRow],
    spec: TrainingSpec,
    *,
    risks: Sequence[RowRisk],
    cache: ReferenceCache | None = None,
    validation_rows: Sequence[TokenizedRow] = (),
    resume: LoadedCheckpoint | None = None,
    checkpoint_folder: Path | None = None,
    on_step: Callable[[StepRecord], None] = _ignore,
    on_checkpoint: Callable[[Checkpoint], None] = _ignore,
    on_validation: Callable[[int, float, float], None] = _ignore,
    should_stop: Callable[[], Stop | None] = _never_stop,
    clock: Callable[[], float] = time.monotonic,
    micro_batch_tokens: int = DEFAULT_MICRO_BATCH_TOKENS,
    floor: float = 0.0,
) -> FitResult:
    """Train the adapter of `model` by `spec` and leave the trained weights in it.

    `risks` has every row, in any order, as the reference pass found them; without a `cache` every step runs the live
    reference. `resume` continues the run that wrote it, on the same machine with the same bits.

    `should_stop` is asked before each step: "cancel" ends the run, "preempt" first writes a checkpoint. After each
    step come `on_step`, then `on_validation(step, loss, token_accuracy)` every `eval_interval` steps and at the end,
    then `on_checkpoint`: at the end of each data epoch, and whenever `checkpoint_interval_s` have passed on
    `clock`. Without a `checkpoint_folder` none are written.

    Raises JobFailure with code `nonfinite_loss` from a step, or `training_failed` where the rows lack what the
    method needs, and CheckpointDamaged where `resume` belongs to another run.
    """
    n_steps = total_steps(spec, len(rows))
    conditions = Conditions(
        safety=spec.safety,
        risks=_checked_risks(rows, risks, spec),
        cache=cache or ReferenceCache({}),
        separable_head=head_is_separable(model),
        max_grad_norm=spec.max_grad_norm,
        micro_batch_tokens=micro_batch_tokens,
        floor=floor,
    )
    if not conditions.separable_head and conditions.cache.states:
        raise JobFailure(
            "this model's logits are more than its head on its final states; it cannot use a cache"
        )
    optimizer = torch.optim.AdamW(
        trainable_parameters(model).values(), lr=spec.learning_rate, weight_decay=spec.weight_decay
    )
    run_digest = compute_run_digest(spec, rows)
    done, trained_tokens = 0, 0
    if resume is not None:
        if resume.trainer.run_digest != run_digest:
            raise CheckpointDamaged(
                f"the checkpoint {resume.info.path.name} belongs to a run with other data or another specification"
            )
        restore(resume, model, optimizer)
        done, trained_tokens = resume.trainer.step, resume.trainer.trained_tokens

    saved = done

    def write_checkpoint(kind: Literal["interval", "epoch", "preempt"]) -> None:
        nonlocal saved
        # The state after a step is saved once; before the first step there is none.
        if checkpoint_folder is None or done == saved:
            return
        saved = done
        state = TrainerState(done, spec.seed, trained_tokens, run_digest)
        info = save_checkpoint(checkpoint_folder, model, optimizer, state)
        on_checkpoint(Checkpoint(info, kind, max(done - 1, 0) // steps_per_epoch(len(rows), spec.batch_size)))

    saved_at = clock()
    while done < n_steps:
        stop = should_stop()
        if stop is not None:
            if stop == "preempt":
                write_checkpoint("preempt")
            return FitResult(done, n_steps, trained_tokens, stop)
        step = done + 1
        data_epoch, places = step_rows(step, n_rows=len(rows), batch_size=spec.batch_size, seed=spec.seed)
        batch_rows = [rows[place] for place in places]
        factor = lr_multiplier(
            step, total_steps=n_steps, warmup_ratio=spec.warmup_ratio, kind=spec.lr_scheduler
        )
        record = train_step(
            model,
            optimizer,
            batch_rows,
            conditions,
            step=step,
            data_epoch=data_epoch,
            lr=spec.learning_rate * factor,
        )
        done = step
        trained_tokens += sum(len(row.input_ids) for row in batch_rows)
        on_step(record)
        if validation_rows and (step % spec.eval_interval == 0 or step == n_steps):
            on_validation(step, *validate(model, validation_rows, micro_batch_tokens=micro_batch_tokens))
        if step % steps_per_epoch(len(rows), spec.batch_size) == 0:
            write_checkpoint("epoch")
            saved_at = clock()
        elif clock() - saved_at >= spec.checkpoint_interval_s:
            write_checkpoint("interval")
            saved_at = clock()
    return FitResult(done, n_steps, trained_tokens, None)


@torch.no_grad()
def validate(
    model: PeftModel,
    rows: Sequence[TokenizedRow],
    *,
    micro_batch_tokens: int = DEFAULT_MICRO_BATCH_TOKENS,
) -> tuple[float, float]:
    """Return the mean NLL in nats and the greedy accuracy over the loss-bearing tokens of `rows`, adapter on."""
    device = next(model.parameters()).device
    separable_head = head_is_separable(model)
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for places in micro_batches([len(row.input_ids) for row in rows], micro_batch_tokens):
        batch = collate([rows[place] for place in places], device)
        log_p = log_probabilities(batch_logits(model, batch, separable_head=separable_head))
        nll = -log_p.gather(-1, batch.labels[:, None])
        correct = log_p.argmax(dim=-1) == batch.labels
        sums += torch.stack([nll.double().sum(), correct.double().sum()])
    loss, accuracy = (sums / sum(row.loss_tokens for row in rows)).tolist()
    return loss, accuracy


def compute_run_digest(spec: TrainingSpec, rows: Sequence[TokenizedRow]) -> str:
    """Return the SHA-256 of what decides a run's course: the specification and the tokenized rows, in hex."""
    digest = hashlib.sha256(canonical_json(spec.model_dump()))
    for row in rows:
        digest.update(canonical_json([row.index, row.input_ids, [int(bears) for bears in row.loss_mask]]))
    return digest.hexdigest()


def _checked_risks(
    rows: Sequence[TokenizedRow], risks: Sequence[RowRisk], spec: TrainingSpec
) -> dict[int, RowRisk]:
    by_row = {risk.row: risk for risk in risks}
    for row in rows:
        if row.index not in by_row:
            raise JobFailure(f"row {row.index} has no risk; run the reference pass over all rows first")
        if isinstance(spec.safety, AdaptiveKL) and by_row[row.index].s is None:
            raise JobFailure(f"row {row.index} was not measured by any critic, which adaptive_kl needs")
    return by_row
