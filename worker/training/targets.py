"""What a loss needs to know of the reference at each loss-bearing position, small enough to be kept.

Either its final states, from which the head gives its whole distribution again, or, for the forward KL, two
summaries of that distribution: with logits z = h·W (row v of W is W_v) the KL is linear in the reference but for a
constant, so `expectation` e = Σ_v p_ref(v)·W_v and one number per position say all that value and gradient need.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from worker.training.head import check_head, chunks, head_logits, math_dtype, softmax_, through_head


@dataclass(frozen=True)
class ReferenceTargets:
    """The reference at n loss-bearing positions. What is None was not asked for."""

    states: Tensor | None = None
    """(n, hidden): final states, in the model's own type."""
    expectation: Tensor | None = None
    """(n, hidden), float32 or float64: Σ_v p_ref(v)·W_v."""
    neg_entropy: Tensor | None = None
    """(n,) float64, nats: Σ_v p_ref(v)·log p_ref(v), less Σ_v p_ref(v)·b_v where the head has a bias b. Then
    KL(reference‖model) = neg_entropy + logsumexp(z) − h·expectation, with or without a bias."""
    label_log_p: Tensor | None = None
    """(n,) float64, nats: log p_ref(label)."""

    def to(self, device: torch.device) -> "ReferenceTargets":
        """Return the same targets on `device`."""
        return ReferenceTargets(
            *(None if part is None else part.to(device, non_blocking=True) for part in self._parts())
        )

    def split(self, counts: Sequence[int]) -> list["ReferenceTargets"]:
        """Cut the positions into runs of these lengths, each a copy, so that none keeps the others in memory."""
        cut = [None if part is None else torch.split(part, list(counts)) for part in self._parts()]
        return [
            ReferenceTargets(*(None if parts is None else parts[place].clone() for parts in cut))
            for place in range(len(counts))
        ]

    @staticmethod
    def concatenate(targets: Sequence["ReferenceTargets"]) -> "ReferenceTargets":
        """Return targets one after another; raises ValueError where they are not of the same kind."""
        columns = list(zip(*(part._parts() for part in targets), strict=True))
        if any(len({part is None for part in column}) > 1 for column in columns):
            raise ValueError(
                "targets of different kinds cannot be joined; compute those of one micro-batch alike"
            )
        return ReferenceTargets(*(None if column[0] is None else torch.cat(column) for column in columns))

    @property
    def n_bytes(self) -> int:
        """Count the bytes of what is kept."""
        return sum(part.nbytes for part in self._parts() if part is not None)

    def _parts(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]


@torch.no_grad()
def compute_targets(
    reference_states: Tensor,
    labels: Tensor,
    head: nn.Module,
    *,
    kind: Literal["states", "expectation"] | None,
    label_log_p: bool,
    chunk_rows: int | None = None,
) -> ReferenceTargets:
    """Return the targets of n positions from the reference's final states, (n, hidden), and labels, (n,).

    `kind` None keeps neither states nor expectation, for a loss that needs `label_log_p` alone. The constant of an
    expectation is taken as h_ref·e − logsumexp(z_ref), by the same operations as a step's own h·e and logsumexp, so
    that the KL of the reference with itself cancels to the last bits instead of to the rounding of an entropy.
    """
    linear = check_head(head)
    n, hidden = reference_states.shape
    dtype = math_dtype(reference_states.dtype)
    expectation = reference_states.new_empty((n, hidden), dtype=dtype) if kind == "expectation" else None
    constant, log_p = reference_states.new_empty((2, n), dtype=torch.float64)
    if kind == "expectation" or label_log_p:
        for part in chunks(n, linear, chunk_rows):
            states = reference_states[part]
            z = head_logits(states, linear)
            z_label = z.gather(1, labels[part, None])[:, 0]
            weights, total, log_sum_exp = softmax_(z, z.amax(1))
            log_p[part] = z_label - log_sum_exp
            if expectation is not None:
                expectation[part] = through_head(weights, linear).div_(total[:, None])
                dot = torch.linalg.vecdot(states.double(), expectation[part].double())
                constant[part] = dot - log_sum_exp
    return ReferenceTargets(
        states=reference_states if kind == "states" else None,
        expectation=expectation,
        neg_entropy=constant if kind == "expectation" else None,
        label_log_p=log_p if label_log_p else None,
    )
