"""The reference pass: one forward over all rows with the adapter off, before the first step.

It gives every row's risk, and keeps from the reference what a step's loss needs of it, so that training never runs
the reference again for the rows that fit into the cache.
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

from app.domain.control_law import compute_treatment
from app.domain.safety_spec import AdaptiveKL, AnySafety, ConstrainedSFT, FixedKL
from app.domain.training_spec import TrainingSpec
from app.errors import TetherError
from worker.training.critics.features import Features, read_features
from worker.training.critics.protocol import Critic, Votes
from worker.training.data import TokenizedRow
from worker.training.memory import is_out_of_memory
from worker.training.models import (
    base_of,
    final_states,
    head_of,
    layer_states,
    reference,
    traits_of,
)
from worker.training.packing import Batch, collate, micro_batches
from worker.training.targets import ReferenceTargets, compute_targets

CRITIC_ERRORS = (ArithmeticError, LookupError, OSError, RuntimeError, TetherError, TypeError, ValueError)
"""What counts as a critic that failed on a row. Anything else ends the job."""

Source = Literal["user", "alignment", "anchor", "monitor"]
Key = tuple[Source, int]
"""A row by where it comes from and its index there."""

EXPECTATION_EPOCHS = 3
"""From this many passes on, one more product in the reference pass is cheaper than one in every step."""


class RowRisk(NamedTuple):
    """What is known of one row's risk before training."""

    row: int
    """Its index in the data file."""
    log_odds: Mapping[str, float]
    """By the digest of each fitted critic that read it: calibrated log-odds; empty where none did, or one failed."""
    s: float | None
    """In [0, 1]; 1 where the critic failed; None where there is no critic."""
    status: str
    votes: Votes = ()
    """A judge's, where one read the row."""


class TargetPlan(NamedTuple):
    """What a row's loss needs to know of the reference."""

    kind: Literal["states", "expectation"] | None
    label_log_p: bool = False

    @property
    def is_nothing(self) -> bool:
        """Whether it needs nothing."""
        return self.kind is None and not self.label_log_p


@dataclass(frozen=True)
class ReferenceCache:
    """What the loss needs of the reference at each loss-bearing token of a row, in CPU memory."""

    targets: Mapping[Key, ReferenceTargets]

    def gather(self, keys: Sequence[Key], device: torch.device) -> ReferenceTargets | None:
        """Return the targets of these rows one after another, or None where any of them is not cached."""
        found = [self.targets[key] for key in keys if key in self.targets]
        if not found or len(found) < len(keys):
            return None
        return ReferenceTargets.concatenate(found).to(device)

    @property
    def n_bytes(self) -> int:
        """Count the bytes of the targets."""
        return sum(targets.n_bytes for targets in self.targets.values())

    def without(self, source: Source) -> "ReferenceCache":
        """Return the targets of all but the rows from one source."""
        return ReferenceCache({key: targets for key, targets in self.targets.items() if key[0] != source})

    def merged(self, other: "ReferenceCache") -> "ReferenceCache":
        """Return the targets of both."""
        return ReferenceCache({**self.targets, **other.targets})


class ReferencePass(NamedTuple):
    """What the reference pass found, in the order of its rows."""

    risks: tuple[RowRisk, ...]
    cache: ReferenceCache


def plan_targets(source: Source, safety: AnySafety, n_epochs: int) -> TargetPlan:
    """Return what the loss of rows from `source` needs of the reference.

    Forward KL needs the reference's expected embedding only (see `worker.training.loss`), which costs a product in the
    pass and none in a step; for a few passes over the data the final states are cheaper in all.
    """
    if source == "user" and isinstance(safety, AdaptiveKL | FixedKL):
        # Rows of one kind of penalty go through the model together with the anchors, so they are kept alike.
        return TargetPlan("states" if safety.penalty != "forward_kl" else _forward_kind(n_epochs))
    if source == "user" and isinstance(safety, ConstrainedSFT):
        # The monitor may lay a KL under every row of it, and then the label alone is not enough.
        may_have_floor = safety.monitor is not None and safety.monitor.action == "floor"
        return TargetPlan("states" if may_have_floor else None, label_log_p=True)
    if source == "user":
        return TargetPlan(None)
    if isinstance(safety, AdaptiveKL | FixedKL):
        return TargetPlan(_forward_kind(n_epochs))
    return TargetPlan("expectation")


def _forward_kind(n_epochs: int) -> Literal["states", "expectation"]:
    return "expectation" if n_epochs >= EXPECTATION_EPOCHS else "states"


def run_reference_pass(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[TokenizedRow],
    critic: Critic | None,
    spec: TrainingSpec,
    *,
    cache_budget_bytes: int,
    known: Mapping[int, RowRisk] | None = None,
    micro_batch_tokens: int = 4096,
    on_progress: Callable[[int], None] = lambda done: None,
) -> ReferencePass:
    """Assess every row and keep the reference's targets of those that train on their own reply.

    A row's log-odds are the highest of its trained assistant turns. A critic that raises, or says something that is
    not a number, makes that row's s 1 and its status `failed`. `known` has the risks that an earlier attempt
    committed to; no critic is asked then. Targets are kept for the rows that fit into the budget, taken in file order, and not at
    all for a model whose logits are more than its head on its final states. `on_progress` hears how many rows are
    done; what it raises ends the pass.
    """
    plan = plan_targets("user", spec.safety, spec.n_epochs)
    law = spec.safety.model_dump()
    to_cache: frozenset[int] = frozenset()
    if not plan.is_nothing and traits_of(model).separable_head:
        to_cache = _rows_within(model, rows, cache_budget_bytes, plan)
    needs_features = known is None and critic is not None and critic.needs_features
    risks: dict[int, RowRisk] = {}
    targets: dict[Key, ReferenceTargets] = {}
    done = 0
    packed = traits_of(model).packed
    for places in micro_batches([len(row.input_ids) for row in rows], micro_batch_tokens, packed=packed):
        batch_rows = [rows[place] for place in places]
        features: list[Features | None] = [None] * len(batch_rows)
        final: Tensor | None = None
        batch = collate(batch_rows, base_of(model).device, packed=packed)
        if needs_features:
            with reference(model):
                final, layers = layer_states(model, batch)
                features = list(read_features(layers, batch_rows, batch.starts))
        for row, row_features in zip(batch_rows, features, strict=True):
            found = known[row.index] if known is not None else assess_row(critic, row.index, row_features)
            risks[row.index] = found
        kept = [
            place
            for place, row in enumerate(batch_rows)
            if row.index in to_cache and compute_treatment(law, risks[row.index].s) == "own"
        ]
        if kept:
            with reference(model):
                final = final_states(model, batch) if final is None else final
                targets.update(_split_targets(model, "user", batch_rows, kept, batch, final, plan))
        done += len(batch_rows)
        on_progress(done)
    return ReferencePass(tuple(risks[row.index] for row in rows), ReferenceCache(targets))


def compute_row_targets(
    model: PreTrainedModel | PeftModel,
    source: Source,
    rows: Sequence[TokenizedRow],
    spec: TrainingSpec,
    *,
    budget_bytes: int,
    micro_batch_tokens: int = 4096,
) -> ReferenceCache:
    """Return the reference's targets of rows whose risk is nobody's question, its own replies, within the budget."""
    plan = plan_targets(source, spec.safety, spec.n_epochs)
    targets: dict[Key, ReferenceTargets] = {}
    if not rows or not traits_of(model).separable_head:
        return ReferenceCache({})
    within = _rows_within(model, rows, budget_bytes, plan)
    rows = [row for row in rows if row.index in within]
    packed = traits_of(model).packed
    for places in micro_batches([len(row.input_ids) for row in rows], micro_batch_tokens, packed=packed):
        batch_rows = [rows[place] for place in places]
        batch = collate(batch_rows, base_of(model).device, packed=packed)
        with reference(model):
            final = final_states(model, batch)
            kept = list(range(len(batch_rows)))
            targets.update(_split_targets(model, source, batch_rows, kept, batch, final, plan))
    return ReferenceCache(targets)


def live_targets(model: PeftModel, batch: Batch, *, label_log_p: bool) -> ReferenceTargets:
    """Run the reference on a micro-batch whose rows did not fit into the cache."""
    with reference(model):
        states = final_states(model, batch)[batch.predecessors]
        return compute_targets(states, batch.labels, _head(model), kind="states", label_log_p=label_log_p)


def assess_row(critic: Critic | None, row: int, features: Features | None) -> RowRisk:
    """Return what `critic` makes of one row; a critic that fails makes it as risky as can be."""
    if critic is None:
        return RowRisk(row, {}, None, "unmeasured")
    try:
        found = critic.assess(row, features)
    except CRITIC_ERRORS as error:
        if is_out_of_memory(error):
            # It says nothing of the critic or the row, and a smaller micro-batch may do.
            raise
        return RowRisk(row, {}, 1.0, "failed")
    if not (all(map(math.isfinite, found.log_odds.values())) and 0.0 <= found.s <= 1.0):
        return RowRisk(row, {}, 1.0, "failed")
    return RowRisk(row, *found)


def _split_targets(
    model: PreTrainedModel | PeftModel,
    source: Source,
    rows: Sequence[TokenizedRow],
    kept: Sequence[int],
    batch: Batch,
    final: Tensor,
    plan: TargetPlan,
) -> dict[Key, ReferenceTargets]:
    """Compute the targets of the kept rows of a micro-batch, each row's its own tensors on the CPU."""
    bounds = np.cumsum([0, *(row.loss_tokens for row in rows)])
    tokens = torch.from_numpy(np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in kept]))
    tokens = tokens.to(final.device)
    found = compute_targets(
        final[batch.predecessors[tokens]],
        batch.labels[tokens],
        _head(model),
        kind=plan.kind,
        label_log_p=plan.label_log_p,
    )
    parts = found.to(torch.device("cpu")).split([rows[i].loss_tokens for i in kept])
    return {(source, rows[i].index): part for i, part in zip(kept, parts, strict=True)}


def _head(model: PreTrainedModel | PeftModel) -> torch.nn.Module:
    head = head_of(model)
    if head is None:
        raise ValueError("a model without a head of its own has no targets apart from its logits")
    return head


def _rows_within(
    model: PreTrainedModel | PeftModel, rows: Sequence[TokenizedRow], budget: int, plan: TargetPlan
) -> frozenset[int]:
    """Return the indices of the rows whose targets fit into the budget, taken in order. A pure function of these."""
    hidden = base_of(model).config.get_text_config().hidden_size
    element = next(model.parameters()).element_size()
    bytes_of = {"states": hidden * element, "expectation": hidden * max(element, 4) + 8, None: 0}
    per_token = bytes_of[plan.kind] + 8 * plan.label_log_p
    chosen, used = set(), 0
    for row in rows:
        size = row.loss_tokens * per_token
        if used + size <= budget:
            chosen.add(row.index)
            used += size
    return frozenset(chosen)
