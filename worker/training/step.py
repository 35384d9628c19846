"""One optimiser step, as one block to read."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from app.domain.control_law import mean
from app.domain.step_record import StepRecord
from app.domain.training_spec import Safety
from app.errors import JobFailure
from worker.training.batching import Batch, collate, micro_batches
from worker.training.data import TokenizedRow
from worker.training.loss import weighted_loss
from worker.training.models import apply_head, final_states, full_logits, reference
from worker.training.reference import ReferenceCache, RowRisk
from worker.training.schedule import row_weights


class Conditions(NamedTuple):
    """What stays the same for every step of a run."""

    safety: Safety
    risks: Mapping[int, RowRisk]
    """By the row's index in the data file."""
    cache: ReferenceCache
    separable_head: bool
    """See `models.head_is_separable`."""
    max_grad_norm: float
    micro_batch_tokens: int
    """Tokens of a micro-batch, padding included."""
    floor: float
    """The run-level floor under every beta."""


def train_step(
    model: PeftModel,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[TokenizedRow],
    conditions: Conditions,
    *,
    step: int,
    data_epoch: int,
    lr: float,
) -> StepRecord:
    """Take one optimiser step on `rows` and report it.

    Raises JobFailure with code `nonfinite_loss`, before any weight changes, where loss or gradient is not finite.
    """
    device = next(model.parameters()).device
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    row_risks = [conditions.risks[row.index] for row in rows]
    weights = row_weights(conditions.safety, [risk.s for risk in row_risks], conditions.floor)
    n_tokens = sum(row.loss_tokens for row in rows)
    sums: list[Tensor] = []

    optimizer.zero_grad(set_to_none=True)
    for places in micro_batches([len(row.input_ids) for row in rows], conditions.micro_batch_tokens):
        batch_rows = [rows[place] for place in places]
        batch = collate(batch_rows, device)
        # The reference comes first: switching the adapter off and on is not for the middle of a recorded graph.
        reference_logits = _reference_logits(model, batch, batch_rows, conditions)
        logits = batch_logits(model, batch, separable_head=conditions.separable_head)
        alpha = logits.new_tensor([weights.alpha[place] for place in places], dtype=_loss_dtype(logits))
        beta = logits.new_tensor([weights.beta[place] for place in places], dtype=_loss_dtype(logits))
        result = weighted_loss(
            logits, batch.labels, reference_logits, alpha[batch.rows], beta[batch.rows], n_tokens
        )
        torch.autograd.backward(result.loss)
        sums.append(
            torch.stack([result.loss.detach().double(), result.nll_sum, result.kl_sum, result.correct])
        )
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, conditions.max_grad_norm)
    loss, nll_sum, kl_sum, correct, norm = torch.cat(
        [torch.stack(sums).sum(0), grad_norm.double()[None]]
    ).tolist()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        indices = ", ".join(str(row.index) for row in rows)
        raise JobFailure(
            f"step {step}: the loss is {loss} and the gradient norm {norm} on rows {indices}; lower learning_rate or"
            " look at these rows",
            code="nonfinite_loss",
        )
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()

    s_values = [risk.s for risk in row_risks if risk.s is not None]
    return StepRecord(
        step=step,
        data_epoch=data_epoch,
        rows=tuple(row.index for row in rows),
        tokens=n_tokens,
        risk_mean=mean(s_values) if s_values else None,
        risk_max=max(s_values) if s_values else None,
        alpha_mean=mean(weights.alpha),
        alpha_min=min(weights.alpha),
        beta_mean=mean(weights.beta),
        beta_max=max(weights.beta),
        floor=conditions.floor,
        nll=nll_sum / n_tokens,
        kl=kl_sum / n_tokens,
        loss=loss,
        token_accuracy=correct / n_tokens,
        grad_norm=norm,
        lr=lr,
    )


def batch_logits(model: PeftModel, batch: Batch, *, separable_head: bool) -> Tensor:
    """Return the logits at a batch's loss-bearing positions, (n, vocabulary).

    Where the head can be applied apart, it is applied at these positions only.
    """
    if separable_head:
        states = final_states(model, batch.input_ids, batch.attention_mask)
        return apply_head(model, states.flatten(0, 1)[batch.predecessors])
    return full_logits(model, batch.input_ids, batch.attention_mask).flatten(0, 1)[batch.predecessors]


def _reference_logits(
    model: PeftModel, batch: Batch, rows: Sequence[TokenizedRow], conditions: Conditions
) -> Tensor:
    """Return the reference's logits, (n, vocabulary): from the cache where it has every row, else live."""
    states = conditions.cache.gather([row.index for row in rows])
    if states is None:
        with reference(model):
            return batch_logits(model, batch, separable_head=conditions.separable_head)
    with torch.no_grad():
        return apply_head(model, states.to(batch.labels.device))


def _loss_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
