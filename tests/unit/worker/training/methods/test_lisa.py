"""Lisa's pull against the gradient of its objective, written out."""

import pytest
import torch

from app.domain.safety_spec import Lisa
from app.domain.step_plan import Layout
from worker.training.methods.registry import build_method

LAYOUT = Layout(n_rows=4, n_alignment=4, batch_size=2, n_epochs=2, seed=0)
TARGETS = {"a": torch.tensor([1.0, -2.0]), "u": torch.tensor([0.5, 3.0])}


def descend(method, weight, steps, rate=0.1):
    """Run the method's hooks on gradient descent towards one point in each state."""
    for step in steps:
        state = "u" if method.plan(step).rows else "a"
        weight.grad = None
        loss = ((weight - TARGETS[state]) ** 2).sum()
        loss.backward()
        method.after_backward({"w": weight}, step)
        with torch.no_grad():
            weight -= rate * weight.grad
        method.after_step({"w": weight}, step)


def by_objective(lisa, states, rate=0.1):
    """The same in closed form: the gradient of L(w) + rho/2·‖w − w_switch‖²."""
    weight, switch = torch.zeros(2, dtype=torch.float64), None
    for step, state in enumerate(states, start=1):
        gradient = 2 * (weight - TARGETS[state].double())
        if switch is not None and step > lisa.proximal_start * len(states):
            gradient = gradient + lisa.rho * (weight - switch)
        weight = weight - rate * gradient
        if step < len(states) and states[step] != state:
            switch = weight.clone()
    return weight


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_the_pull_is_the_gradient_of_the_objective(start):
    lisa = Lisa(alignment_steps=2, user_steps=2, rho=0.7, proximal_start=start)
    method = build_method(lisa, LAYOUT)
    states = "aauuaauu"
    assert method.total_steps == len(states)
    weight = torch.zeros(2, requires_grad=True)
    descend(method, weight, range(1, 9))
    torch.testing.assert_close(weight.detach().double(), by_objective(lisa, states), rtol=1e-6, atol=1e-7)


def test_the_state_survives_a_checkpoint():
    lisa = Lisa(alignment_steps=2, user_steps=2, rho=0.7, proximal_start=0.0)
    whole, first = build_method(lisa, LAYOUT), build_method(lisa, LAYOUT)
    one, other = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    descend(whole, one, range(1, 9))
    descend(first, other, range(1, 6))
    second = build_method(lisa, LAYOUT)
    second.load_state(first.state())
    descend(second, other, range(6, 9))
    assert torch.equal(one, other)
