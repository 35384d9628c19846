"""Lisa (arXiv 2405.18641): steps on alignment data and on the user's by turns, each pulled to where the other ended.

In each state the loss is `L(w) + (rho/2)·‖w − w_switch‖²` over the adapter's weights, `w_switch` being the weights at
the last change of state. The pull begins after a first share of the steps, as in the authors' code.
"""

from typing import cast

from torch import Tensor

from app.domain import safety_spec
from app.domain.safety_spec import AnySafety
from app.domain.step_plan import Layout
from worker.training.methods.plain import Method


class Lisa(Method):
    """Cycles of `alignment_steps` and `user_steps`, beginning with alignment."""

    _switch: dict[str, Tensor]

    def __init__(self, safety: AnySafety, layout: Layout) -> None:
        super().__init__(safety, layout)
        self._switch = {}

    @property
    def _lisa(self) -> safety_spec.Lisa:
        return cast(safety_spec.Lisa, self.safety)

    def after_backward(self, parameters: dict[str, Tensor], step: int) -> None:
        """Add the gradient of the pull, `rho·(w − w_switch)`."""
        if step <= self._lisa.proximal_start * self.total_steps:
            return
        for name, value in self._switch.items():
            parameter = parameters[name]
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - value.to(parameter), alpha=self._lisa.rho)

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
