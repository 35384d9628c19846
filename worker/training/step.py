"""One optimiser step, as one block to read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from app.domain.control_law import (
    MonitorState,
    compute_alpha,
    compute_anchor_weight,
    compute_row_betas,
    raise_s,
    summarise_step,
)
from app.domain.safety_spec import AdaptiveKL, AnySafety, FixedKL
from app.domain.step_plan import StepPlan
from app.domain.step_record import StepRecord
from worker.training.data import TokenizedRow
from worker.training.loss import Penalty, TokenLosses, head_loss, logits_loss
from worker.training.methods.plain import Method
from worker.training.models import final_states, full_logits, head_of, reference, trainable_parameters
from worker.training.packing import Batch, collate, micro_batches
from worker.training.reference import ReferenceCache, RowRisk, Source, live_targets

Pull = Penalty | Literal["constraint"] | None
PROMPT_SHARE = 0.5
"""How much the KL on the anchors' prompts counts beside that on their replies."""


@dataclass(frozen=True)
class RunData:
    """Everything that a run trains on, tokenized, with what is known of its reference."""

    rows: tuple[TokenizedRow, ...]
    """The user's rows that are trained on, a replayed one with the reference's reply; `index` is that of the file."""
    risks: Mapping[int, RowRisk]
    """By the row's index in the file."""
    cache: ReferenceCache
    anchors: tuple[TokenizedRow, ...] = ()
    """Prompts with the reference's own replies; every token but the first bears loss."""
    monitored: tuple[TokenizedRow, ...] = ()
    """Other prompts with the reference's own replies, which bear the loss; never trained on."""
    alignment: tuple[TokenizedRow, ...] = ()


class Conditions(NamedTuple):
    """What stays the same for every step of a run."""

    data: RunData
    safety: AnySafety
    law: Mapping[str, Any]
    """`safety` as the control law reads it."""
    method: Method
    separable_head: bool
    """See `models.head_is_separable`."""
    packed: bool
    """See `models.can_pack`."""
    max_grad_norm: float
    micro_batch_tokens: int
    """Tokens of a micro-batch, padding included."""


class Controls(NamedTuple):
    """What the steps before have left to this one."""

    monitor: MonitorState = MonitorState()
    smoothed: float | None = None
    """The smoothed s of the last step, where the scope is the batch."""
    live: Mapping[int, float] = MappingProxyType({})
    """What a live judge has said last of a row, by its index in the file."""


class Item(NamedTuple):
    """A row of a step, with what each of its loss-bearing tokens counts."""

    source: Source
    row: TokenizedRow
    alpha: NDArray[np.float64]
    """(loss-bearing tokens,), already divided by the tokens of the step."""
    beta: NDArray[np.float64]
    constraint: Sequence[float] | None


class MicroBatch(NamedTuple):
    """Items that go through the model together."""

    place: int
    pull: Pull
    items: tuple[Item, ...]
    batch: Batch


class StepResult(NamedTuple):
    """A step's report, and what it leaves to the next one."""

    record: StepRecord
    smoothed: float | None


def train_step(
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    plan: StepPlan,
    anchors: Sequence[int],
    conditions: Conditions,
    controls: Controls,
    *,
    step: int,
    lr: float,
) -> StepResult:
    """Take one optimiser step and report it.

    Where loss or gradient is not finite no weight changes, and the record says `skipped`.
    """
    data, method = conditions.data, conditions.method
    device = next(model.parameters()).device
    parameters = trainable_parameters(model)
    rows = [data.rows[place] for place in plan.rows]
    s_values = [data.risks[row.index].s for row in rows]
    live = [controls.live.get(row.index) for row in rows]
    law, floor = conditions.law, controls.monitor.floor
    betas: tuple[float, ...] = ()
    smoothed = controls.smoothed
    if rows:
        betas, smoothed = compute_row_betas(law, s_values, floor, smoothed, live)
    anchor_weight = compute_anchor_weight(law, controls.monitor) if anchors else 0.0
    items = [
        *own_items(rows, betas, plan, conditions),
        *anchor_items([data.anchors[place] for place in anchors], anchor_weight),
    ]
    n_tokens = sum(item.row.loss_tokens for item in items if item.source != "anchor")

    optimizer.zero_grad(set_to_none=True)
    sums: dict[int, Tensor] = {}

    def backward(micro: MicroBatch) -> None:
        losses = micro_losses(model, micro, conditions)
        torch.autograd.backward(losses.loss)
        sums[micro.place] = micro_sums(micro, losses)

    method.accumulate(model, plan, _micro_batches(items, conditions, device), backward)
    method.after_backward(dict(parameters), step)
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters.values(), conditions.max_grad_norm)
    *totals, norm = torch.cat([torch.stack(list(sums.values())).sum(0), grad_norm.double()[None]]).tolist()
    loss, nll_sum, kl_sum, correct, anchor_sum = totals
    finite = math.isfinite(loss) and math.isfinite(norm)
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    method.after_step(dict(parameters), step)

    record = StepRecord(
        step=step,
        data_epoch=plan.data_epoch,
        rows=tuple(row.index for row in rows),
        alignment_rows=tuple(data.alignment[place].index for place in plan.alignment),
        tokens=n_tokens,
        **summarise_step(list(map(raise_s, s_values, live)), betas)._asdict(),
        s_smoothed=smoothed if rows else None,
        floor=floor,
        nll=nll_sum / n_tokens,
        kl=kl_sum / n_tokens if rows and isinstance(conditions.safety, AdaptiveKL | FixedKL) else None,
        loss=loss,
        token_accuracy=correct / n_tokens,
        anchors=tuple(data.anchors[place].index for place in anchors),
        anchor_kl=anchor_sum / anchor_weight if anchors else None,
        anchor_weight=anchor_weight,
        grad_norm=norm,
        lr=lr,
        skipped=not finite,
    )
    return StepResult(record, smoothed)


def own_items(
    rows: Sequence[TokenizedRow],
    betas: Sequence[float],
    plan: StepPlan,
    conditions: Conditions,
) -> list[Item]:
    """Return the user's rows of a step and its alignment rows, each token's weights over the tokens of them all."""
    alignment = [conditions.data.alignment[place] for place in plan.alignment]
    n_tokens = sum(row.loss_tokens for row in (*rows, *alignment))
    weighted: list[tuple[Source, TokenizedRow, float]] = [
        *(("user", row, beta) for row, beta in zip(rows, betas, strict=True)),
        # Safe demonstrations have no risk that anything must hold.
        *(("alignment", row, 0.0) for row in alignment),
    ]
    return [
        Item(
            source,
            row,
            np.full(row.loss_tokens, compute_alpha(beta) / n_tokens),
            np.full(row.loss_tokens, beta / n_tokens),
            conditions.method.constraint(row) if source == "user" else None,
        )
        for source, row, beta in weighted
    ]


def anchor_items(rows: Sequence[TokenizedRow], weight: float) -> list[Item]:
    """Return anchors at `weight` times their KL: its mean over their replies, and half its mean over their prompts."""
    if not rows:
        return []
    in_reply = [np.flatnonzero(row.loss_mask) > row.prompt_ends[0] for row in rows]
    n_reply = sum(int(part.sum()) for part in in_reply)
    n_prompt = sum(int((~part).sum()) for part in in_reply)
    per_reply, per_prompt = weight / n_reply, PROMPT_SHARE * weight / max(n_prompt, 1)
    return [
        Item("anchor", row, np.zeros(len(part)), np.where(part, per_reply, per_prompt), None)
        for row, part in zip(rows, in_reply, strict=True)
    ]


def micro_losses(model: PeftModel, micro: MicroBatch, conditions: Conditions) -> TokenLosses:
    """Run the model, and the reference where it is not cached, on a micro-batch."""
    batch, items = micro.batch, micro.items
    device = batch.labels.device
    alpha, beta = (_to(device, [getattr(item, name) for item in items]) for name in ("alpha", "beta"))
    constraint = None
    if micro.pull == "constraint":
        constraint = _to(device, [np.asarray(item.constraint) for item in items])
    penalty: Penalty = "forward_kl"
    if micro.pull is not None and micro.pull != "constraint":
        penalty = micro.pull
    head = head_of(model)
    if not conditions.separable_head or head is None:
        return _plain_losses(model, micro, alpha, beta, constraint, penalty)
    targets = None
    if micro.pull is not None:
        # The reference comes first: switching the adapter off and on is not for the middle of a recorded graph.
        targets = conditions.data.cache.gather([(item.source, item.row.index) for item in items], device)
        if targets is None:
            targets = live_targets(model, batch, label_log_p=constraint is not None)
    states = final_states(model, batch)[batch.predecessors]
    return head_loss(states, head, batch.labels, targets, alpha, beta, penalty=penalty, constraint=constraint)


def micro_sums(micro: MicroBatch, losses: TokenLosses) -> Tensor:
    """Return loss, nll, penalty and correct tokens of the step's own rows, and the anchors' penalty as it entered the loss."""
    nll, correct = losses.nll.double(), losses.correct.double()
    is_anchor = [float(item.source == "anchor") for item in micro.items]
    anchors = nll.new_tensor(is_anchor)[micro.batch.rows]
    own = 1.0 - anchors
    # Where no penalty is asked for, its place holds no number.
    penalty = torch.zeros_like(nll) if micro.pull in (None, "constraint") else losses.penalty.double()
    weight = _to(nll.device, [item.beta for item in micro.items])
    return torch.stack(
        [
            losses.loss.detach().double(),
            (nll * own).sum(),
            (penalty * own).sum(),
            (correct * own).sum(),
            (penalty * weight * anchors).sum(),
        ]
    )


def _plain_losses(
    model: PeftModel,
    micro: MicroBatch,
    alpha: Tensor,
    beta: Tensor,
    constraint: Tensor | None,
    penalty: Penalty,
) -> TokenLosses:
    """The path of a model whose logits are more than its head on its final states: its own logits, by autograd."""
    batch = micro.batch
    reference_logits = states = reference_states = None
    if micro.pull is not None:
        with reference(model):
            reference_logits = full_logits(model, batch)[batch.predecessors]
    if penalty == "l2":
        with reference(model):
            reference_states = final_states(model, batch)[batch.predecessors]
        states = final_states(model, batch)[batch.predecessors]
    logits = full_logits(model, batch)[batch.predecessors]
    return logits_loss(
        logits,
        batch.labels,
        reference_logits,
        alpha,
        beta,
        penalty=penalty,
        constraint=constraint,
        states=states,
        reference_states=reference_states,
    )


def _micro_batches(items: Sequence[Item], conditions: Conditions, device: torch.device) -> list[MicroBatch]:
    """Cut a step into micro-batches; rows that need different things of the reference stay apart."""
    groups: dict[Pull, list[Item]] = {}
    for item in items:
        groups.setdefault(_pull_of(item, conditions.safety), []).append(item)
    found: list[MicroBatch] = []
    for pull, some in groups.items():
        lengths = [len(item.row.input_ids) for item in some]
        for places in micro_batches(lengths, conditions.micro_batch_tokens, packed=conditions.packed):
            chosen = tuple(some[place] for place in places)
            batch = collate([item.row for item in chosen], device, packed=conditions.packed)
            found.append(MicroBatch(len(found), pull, chosen, batch))
    return found


def _pull_of(item: Item, safety: AnySafety) -> Pull:
    """Return what holds a row to its reference: a penalty, the constraint, or nothing."""
    if item.constraint is not None:
        return "constraint"
    # KL is reported for every user row of a job that steers by it, whatever its beta.
    if item.source == "user" and isinstance(safety, AdaptiveKL | FixedKL):
        return safety.penalty
    return "forward_kl" if item.beta.any() else None


def _to(device: torch.device, parts: Sequence[NDArray[np.float64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(device)
