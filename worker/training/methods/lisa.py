"""Lisa (arXiv 2405.18641): steps on alignment data and on the user's by turns, each pulled to where the other ended.

In each state the loss is `L(w) + (rho/2)·‖w − w_switch‖²` over the adapter's weights, `w_switch` being the weights at
the last change of state. The pull begins after a first share of the steps, as in the authors' code.
"""

from typing import cast

from torch import Tensor

from app.domain import safety_spec
from app.domain.safety_spec import AnySafety
from worker.training.methods.plain import Layout, Method, StepPlan
from worker.training.methods.safety_mix import cycled_rows


class Lisa(Method):
    """Cycles of `alignment_steps` and `user_steps`, beginning with alignment."""

    _switch: dict[str, Tensor]

    def __init__(self, safety: AnySafety, layout: Layout) -> None:
        super().__init__(safety, layout)
        self._switch = {}

    @property
    def _lisa(self) -> safety_spec.Lisa:
        return cast(safety_spec.Lisa, self.safety)

    @property
    def total_steps(self) -> int:
        """The user's steps and one stretch of alignment before each `user_steps` of them."""
        stretches = -(-self.layout.user_steps // self._lisa.user_steps)
        return self.layout.user_steps + stretches * self._lisa.alignment_steps

    def plan(self, step: int) -> StepPlan:
        """Return alignment rows or the user's, as the state at `step` has it."""
        lisa = self._lisa
        cycle, place = divmod(step - 1, lisa.alignment_steps + lisa.user_steps)
        if place >= lisa.alignment_steps:
            return super().plan(cycle * lisa.user_steps + place - lisa.alignment_steps + 1)
        data_epoch = super().plan(cycle * lisa.user_steps + 1).data_epoch
        first = (cycle * lisa.alignment_steps + place) * self.layout.batch_size
        draws = range(first, first + self.layout.batch_size)
        return StepPlan(data_epoch, (), cycled_rows(draws, self.layout.n_alignment, self.layout.seed))

    def after_backward(self, parameters: dict[str, Tensor], step: int) -> None:
        """Add the gradient of the pull, `rho·(w − w_switch)`."""
        if step <= self._lisa.proximal_start * self.total_steps:
            return
        for name, value in self._switch.items():
            parameter = parameters[name]
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - value, alpha=self._lisa.rho)

    def after_step(self, parameters: dict[str, Tensor], step: int) -> None:
        """Note the weights where the state changes after this step."""
        if step < self.total_steps and bool(self.plan(step).rows) is not bool(self.plan(step + 1).rows):
            self._switch = {name: value.detach().clone() for name, value in parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """Return the weights at the last change of state."""
        return self._switch

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on with the weights at the last change of state."""
        self._switch = state
