"""Antidote's scores and pruning against loops over single weights."""

import pytest
import torch

from app.domain.safety_spec import Antidote
from app.domain.step_plan import Layout
from worker.training.data import TokenizedRow
from worker.training.methods.antidote import adapter_linears, prune_
from worker.training.methods.registry import build_method
from worker.training.models import trainable_parameters


def test_pruning_zeroes_the_highest_scores_of_each_output():
    weight = torch.tensor([[1.0, -4.0, 2.0, 0.5], [3.0, 3.0, -1.0, 0.0]])
    norms = torch.tensor([1.0, 0.1, 2.0, 10.0])
    # Scores: 1, 0.4, 4, 5 and 3, 0.3, 2, 0.
    prune_(weight, norms, density=0.5)
    assert weight.tolist() == [[1.0, -4.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]]


@pytest.mark.parametrize(("density", "gone"), [(0.01, 1), (0.3, 1), (0.5, 2), (0.99, 3)])
def test_the_number_of_pruned_weights_is_rounded_down_but_never_none(density, gone):
    weight = torch.ones(2, 4)
    prune_(weight, torch.arange(4.0) + 1, density)
    assert (weight == 0).sum(1).tolist() == [gone, gone]


def test_finish_scores_by_the_inputs_of_each_layer(make_model):
    model, by_hand = make_model(torch.float64, drift=0.3), make_model(torch.float64, drift=0.3)
    rows = [TokenizedRow(n, tuple(range(n, n + 9)), (False,) * 4 + (True,) * 5, (3,)) for n in range(3)]
    method = build_method(Antidote(density=0.3), Layout(3, 3, 1, 1, 0))
    method.finish(model, rows)

    seen = {name: [] for name in adapter_linears(by_hand)}
    for name, linear in adapter_linears(by_hand).items():
        linear.register_forward_hook(lambda _m, inputs, _o, name=name: seen[name].append(inputs[0][0]))
    with torch.no_grad():
        for row in rows:
            by_hand(torch.tensor([row.input_ids]))
    expected = {}
    for name, linear in adapter_linears(by_hand).items():
        inputs = torch.cat(seen[name])
        weight = linear.weight.detach().clone()
        for out in range(weight.shape[0]):
            scores = [
                abs(float(weight[out, j])) * float((inputs[:, j] ** 2).sum()) ** 0.5
                for j in range(weight.shape[1])
            ]
            count = max(1, int(0.3 * len(scores)))
            for j in sorted(range(len(scores)), key=lambda j: -scores[j])[:count]:
                weight[out, j] = 0.0
        expected[name] = weight
    found = adapter_linears(model)
    for name, weight in expected.items():
        assert torch.equal(found[name].weight, weight)
    assert len(expected) == len(trainable_parameters(model))
