"""What a method may change of how a step trains, each at its plain value: one backward per micro-batch.

Which rows a step takes is in `app.domain.step_plan`, alpha and beta are in `app.domain.control_law`, where an offline
verifier finds them too. The methods that differ only in these are this one.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from peft import PeftModel
from torch import Tensor

from app.domain.safety_spec import AnySafety
from app.domain.step_plan import Layout, StepPlan, plan_step, total_steps
from worker.training.data import TokenizedRow

T = TypeVar("T")


class Method:
    """A plain run. A method overrides what it changes."""

    def __init__(self, safety: AnySafety, layout: Layout) -> None:
        self.safety = safety
        self.layout = layout
        self._law = safety.model_dump()

    @property
    def total_steps(self) -> int:
        """The optimiser steps of the run."""
        return total_steps(self._law, self.layout)

    def plan(self, step: int) -> StepPlan:
        """Return what `step`, counted from 1, trains on."""
        return plan_step(self._law, self.layout, step)

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
