"""What a method may change of a run, each at its plain value: one pass over the user's rows, one backward each.

The methods that differ only in alpha and beta (`none`, `filter`, `fixed_kl`, `adaptive_kl`) are this one: their law
is in `app.domain.control_law`, where an offline verifier finds it too.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from peft import PeftModel
from torch import Tensor

from app.domain.safety_spec import AnySafety
from worker.training.batching import step_rows, steps_per_epoch
from worker.training.data import TokenizedRow

T = TypeVar("T")


class Layout(NamedTuple):
    """What decides which rows a step takes."""

    n_rows: int
    n_alignment: int
    """Rows of the alignment set, 0 where the method has none."""
    batch_size: int
    n_epochs: int
    seed: int

    @property
    def user_steps(self) -> int:
        """The optimiser steps that all passes over the user's rows take."""
        return self.n_epochs * steps_per_epoch(self.n_rows, self.batch_size)


class StepPlan(NamedTuple):
    """What one optimiser step trains on, as places in the lists of rows."""

    data_epoch: int
    """The pass over the user's rows that the step belongs to, from 0."""
    rows: tuple[int, ...]
    alignment: tuple[int, ...] = ()


class Method:
    """A plain run. A method overrides what it changes."""

    def __init__(self, safety: AnySafety, layout: Layout) -> None:
        self.safety = safety
        self.layout = layout

    @property
    def total_steps(self) -> int:
        """The optimiser steps of the run."""
        return self.layout.user_steps

    def plan(self, step: int) -> StepPlan:
        """Return what `step`, counted from 1, trains on: a pure function of the layout."""
        n_rows, _, batch_size, _, seed = self.layout
        return StepPlan(*step_rows(step, n_rows=n_rows, batch_size=batch_size, seed=seed))

    def constraint(self, row: TokenizedRow) -> Sequence[float] | None:
        """Return the strength of the constraint on each loss-bearing token of a row; None where there is none."""
        return None

    def accumulate(
        self, model: PeftModel, plan: StepPlan, batches: Sequence[T], backward: Callable[[T], None]
    ) -> None:
        """Add the gradient of every micro-batch of the step."""
        for batch in batches:
            backward(batch)

    def after_backward(self, parameters: dict[str, Tensor], step: int) -> None:
        """Change the gradient of the whole step, before it is clipped."""

    def after_step(self, parameters: dict[str, Tensor], step: int) -> None:
        """Look at the weights that a step has left."""

    def finish(self, model: PeftModel, alignment: Sequence[TokenizedRow]) -> None:
        """Change the trained weights, once, after the last step."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold beside weights and optimiser."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
