"""The reference pass: one forward over all rows with the adapter off, before the first step.

It gives every row's risk, and keeps the final hidden states from which a step computes the reference's logits, so
that training never runs the reference again for the rows that fit into the cache.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from app.errors import TetherError
from worker.training.batching import collate, micro_batches
from worker.training.critics.protocol import Critic, Features
from worker.training.data import TokenizedRow
from worker.training.models import base_of, final_states, head_is_separable, layer_states, reference

CRITIC_ERRORS = (ArithmeticError, LookupError, OSError, RuntimeError, TetherError, TypeError, ValueError)
"""What counts as a critic that failed on a row. Anything else ends the job."""


class RowRisk(NamedTuple):
    """What is known of one row's risk before training."""

    row: int
    """Its index in the data file."""
    log_odds: float | None
    """Calibrated log-odds that it is harmful; None where the critic has none, failed, or there is no critic."""
    s: float | None
    """In [0, 1]; 1 where the critic failed; None where there is no critic."""
    status: Literal["ok", "failed", "constant", "unmeasured"]


@dataclass(frozen=True)
class ReferenceCache:
    """The reference's final hidden states where loss-bearing tokens are predicted, in CPU memory."""

    states: Mapping[int, Tensor]
    """By row index: (loss-bearing tokens, hidden), in the order of the tokens, in the model's own type."""

    def gather(self, rows: Sequence[int]) -> Tensor | None:
        """Return the states of these rows one after another, or None where any of them is not cached."""
        found = [self.states[row] for row in rows if row in self.states]
        return torch.cat(found) if len(found) == len(rows) else None

    @property
    def n_bytes(self) -> int:
        """Count the bytes of the states."""
        return sum(states.nbytes for states in self.states.values())


class ReferencePass(NamedTuple):
    """What the reference pass found, in the order of its rows."""

    risks: tuple[RowRisk, ...]
    cache: ReferenceCache


def run_reference_pass(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[TokenizedRow],
    critic: Critic | None,
    *,
    cache_budget_bytes: int,
    micro_batch_tokens: int = 4096,
    on_progress: Callable[[int], None] = lambda done: None,
) -> ReferencePass:
    """Assess every row and cache the reference's final states, rows in file order until the budget is spent.

    A row's log-odds are the highest of its trained assistant turns, each read at its last prompt token. A critic
    that raises, or says something that is not a number, makes that row's s 1 and its status `failed`. A model whose
    logits are more than its head on its final states caches nothing. `on_progress` hears how many rows are done;
    what it raises ends the pass.
    """
    to_cache = _rows_within(model, rows, cache_budget_bytes) if head_is_separable(model) else frozenset()
    needs_features = critic is not None and critic.needs_features
    risks: dict[int, RowRisk] = {}
    states: dict[int, Tensor] = {}
    device = base_of(model).device
    done = 0
    for places in micro_batches([len(row.input_ids) for row in rows], micro_batch_tokens):
        batch_rows = [rows[place] for place in places]
        features: list[Features | None] = [None] * len(batch_rows)
        if needs_features or not to_cache.isdisjoint(row.index for row in batch_rows):
            batch = collate(batch_rows, device)
            with reference(model):
                if needs_features:
                    final, layers = layer_states(model, batch.input_ids, batch.attention_mask)
                    features = list(features_at(layers, [row.prompt_ends for row in batch_rows]))
                else:
                    final = final_states(model, batch.input_ids, batch.attention_mask)
                gathered = final.flatten(0, 1)[batch.predecessors].cpu()
            for row, part in zip(
                batch_rows, torch.split(gathered, [row.loss_tokens for row in batch_rows]), strict=True
            ):
                if row.index in to_cache:
                    # A part of a split is a view; a copy lets the rest of the batch go.
                    states[row.index] = part.clone()
        for row, row_features in zip(batch_rows, features, strict=True):
            risks[row.index] = assess_row(critic, row.index, row_features)
        done += len(batch_rows)
        on_progress(done)
    return ReferencePass(tuple(risks[row.index] for row in rows), ReferenceCache(states))


def assess_row(critic: Critic | None, row: int, features: Features | None) -> RowRisk:
    """Return what `critic` makes of one row; a critic that fails makes it as risky as can be."""
    if critic is None:
        return RowRisk(row, None, None, "unmeasured")
    try:
        if features is None:
            features = np.zeros((0, 0, 0), dtype=np.float32)
        found = critic.assess(features)
    except CRITIC_ERRORS:
        return RowRisk(row, None, 1.0, "failed")
    if not (math.isfinite(found.log_odds or 0.0) and 0.0 <= found.s <= 1.0):
        return RowRisk(row, None, 1.0, "failed")
    return RowRisk(row, found.log_odds, found.s, found.status)


def features_at(layers: Sequence[Tensor], positions: Sequence[Sequence[int]]) -> Sequence[Features]:
    """Read the states of each row at its positions: per row (positions, layers, hidden), float32 on the CPU."""
    counts = [len(of_row) for of_row in positions]
    row = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(layers[0].device)
    column = torch.tensor([place for of_row in positions for place in of_row], device=layers[0].device)
    picked = torch.stack([layer[row, column] for layer in layers], dim=1).float().cpu()
    return [part.numpy() for part in torch.split(picked, counts)]


def _rows_within(
    model: PreTrainedModel | PeftModel, rows: Sequence[TokenizedRow], budget: int
) -> frozenset[int]:
    """Return the indices of the rows whose states fit into the budget, taken in order. A pure function of both."""
    per_token = base_of(model).config.get_text_config().hidden_size * next(model.parameters()).element_size()
    chosen, used = set(), 0
    for row in rows:
        size = row.loss_tokens * per_token
        if used + size <= budget:
            chosen.add(row.index)
            used += size
    return frozenset(chosen)
