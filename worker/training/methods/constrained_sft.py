"""Constrained SFT (arXiv 2406.05946, equation 4): the log-ratio to the reference holds each token, the first ones most.

Per token `−(2/c)·log σ(c·Δ)` with `Δ = log p(y) − log p_ref(y)`; its gradient is that of NLL times
`2·σ(−c·Δ)`, so a token that the model already prefers far beyond its reference stops pushing. The loss itself is
in `worker.training.loss`; this file has the schedule of c.
"""

from collections.abc import Sequence
from typing import cast

from app.domain import safety_spec
from worker.training.data import TokenizedRow
from worker.training.methods.plain import Method


class ConstrainedSFT(Method):
    """Plain but for the constraint on each token."""

    def constraint(self, row: TokenizedRow) -> Sequence[float]:
        """Return c of each loss-bearing token, counted within its own assistant turn."""
        safety = cast(safety_spec.ConstrainedSFT, self.safety)
        strengths: list[float] = []
        place = 0
        for position, bears in enumerate(row.loss_mask):
            place = place + 1 if bears else 0
            # A turn may follow another without a token between them.
            if bears and position - 1 in row.prompt_ends:
                place = 1
            if bears:
                factor = 1.0
                if place == 1:
                    factor = safety.first_token_factor
                elif place <= safety.early_tokens:
                    factor = safety.early_factor
                strengths.append(safety.beta * factor)
        return strengths
