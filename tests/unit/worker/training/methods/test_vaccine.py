"""Vaccine's perturbed gradient against one computed with explicit additive tensors."""

import pytest
import torch
from torch import nn

from app.domain.safety_spec import Vaccine
from app.domain.step_plan import Layout
from worker.training.methods.registry import build_method
from worker.training.methods.vaccine import attention_layers
from worker.training.models import trainable_parameters

ROWS = [torch.arange(7)[None] + start for start in (3, 20, 40)]


def loss_of(model, tokens):
    logits = model(tokens).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum") / 21


class Shifted(nn.Module):
    """An attention layer with a tensor added to its output."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.shift = None

    def forward(self, *args, **kwargs):
        states, *rest = self.inner(*args, **kwargs)
        return (states + self.shift, *rest)


def by_hand(model, rho):
    """Gradient of the loss at h + rho·g/‖g‖, g by differentiating with respect to an additive zero."""
    layers = []
    for block in model.get_base_model().model.layers:
        block.self_attn = Shifted(block.self_attn)
        layers.append(block.self_attn)
    gradients = []
    for tokens in ROWS:
        for layer in layers:
            layer.shift = torch.zeros(1, tokens.shape[1], 32, dtype=torch.float64, requires_grad=True)
        gradients.append(torch.autograd.grad(loss_of(model, tokens), [layer.shift for layer in layers]))
    norm = sum(float((g**2).sum()) for row in gradients for g in row) ** 0.5
    total = 0.0
    for tokens, row in zip(ROWS, gradients, strict=True):
        for layer, gradient in zip(layers, row, strict=True):
            layer.shift = rho * gradient / (norm + 1e-7)
        total = total + loss_of(model, tokens)
    total.backward()
    return float(total.detach())


@pytest.mark.parametrize("batches", [[[0], [1], [2]], [[2], [0, 1]], [[0, 1, 2]]])
def test_the_gradient_is_that_at_the_perturbed_states(make_model, batches):
    model, other = make_model(torch.float64, drift=0.3), make_model(torch.float64, drift=0.3)
    method = build_method(Vaccine(rho=0.8), Layout(3, 3, 3, 1, 0))
    losses = {}

    def backward(places):
        # All rows are as long, so that several stand side by side.
        loss = loss_of(model, torch.cat([ROWS[place] for place in places]))
        loss.backward()
        losses[tuple(places)] = float(loss.detach())

    method.accumulate(model, method.plan(1), batches, backward)
    expected = by_hand(other, rho=0.8)
    assert sum(losses.values()) == pytest.approx(expected, rel=1e-9)
    renamed = {
        name.replace(".inner", ""): parameter.grad for name, parameter in trainable_parameters(other).items()
    }
    for name, parameter in trainable_parameters(model).items():
        torch.testing.assert_close(parameter.grad, renamed[name], rtol=1e-6, atol=1e-12)


def test_the_perturbation_raises_the_loss(make_model):
    model = make_model(torch.float64, drift=0.3)
    plain = sum(float(loss_of(model, tokens).detach()) for tokens in ROWS)
    assert by_hand(model, rho=0.8) > plain


def test_the_users_stage_is_plain(make_model):
    model = make_model(torch.float64, drift=0.3)
    method = build_method(Vaccine(), Layout(3, 3, 3, 1, 0))
    seen = []
    method.accumulate(model, method.plan(2), [[0], [1]], seen.append)
    assert seen == [[0], [1]]


def test_every_block_has_its_attention_layer(make_model):
    assert len(attention_layers(make_model())) == 2
