"""Safety demonstrations mixed into the user's data (arXiv 2309.07875): `share` of them per user row, in every step."""

from typing import cast

from app.domain import safety_spec
from worker.training.batching import row_order
from worker.training.methods.plain import Method, StepPlan


class SafetyMix(Method):
    """Each step takes some rows of the alignment set beside the user's."""

    def plan(self, step: int) -> StepPlan:
        """Return the user's rows and as many of the alignment set as keep the share, spread evenly over the steps."""
        share = cast(safety_spec.SafetyMix, self.safety).share
        per_step = share * self.layout.batch_size
        first, end = int((step - 1) * per_step), int(step * per_step)
        return (
            super()
            .plan(step)
            ._replace(alignment=cycled_rows(range(first, end), self.layout.n_alignment, self.layout.seed))
        )


def cycled_rows(draws: range, n_rows: int, seed: int) -> tuple[int, ...]:
    """Return the rows that draws number `draws.start` to `draws.stop` give, going through all rows in a new order each time."""
    return tuple(row_order(n_rows, seed, draw // n_rows)[draw % n_rows] for draw in draws)
