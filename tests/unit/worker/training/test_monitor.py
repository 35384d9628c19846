"""The run-level monitor against the KL of plain forward passes."""

import pytest
import torch

from app.domain.safety_spec import ConstrainedSFT, FixedKL, Monitor, NoPenalty
from app.domain.step_plan import Layout
from worker.training.data import tokenize_rows
from worker.training.methods.registry import build_method
from worker.training.models import can_pack, trainable_parameters
from worker.training.monitor import measure_drift
from worker.training.reference import ReferenceCache, compute_row_targets
from worker.training.replies import first_prompt, reply_to
from worker.training.step import Conditions, RunData

WATCHED = FixedKL(beta=0.3, monitor=Monitor())
PLENTY = 10**9


@pytest.fixture
def monitored(make_base, make_tokenizer, training_rows, monkeypatch):
    monkeypatch.setattr("worker.training.replies.MAX_REPLY_TOKENS", 12)
    tokenizer = make_tokenizer()
    rows = tokenize_rows(tokenizer, training_rows[:4], max_seq_length=256, overlength="error").rows
    # Cut to unequal lengths, so that a mean over rows is not the mean over tokens.
    return tuple(
        row
        for n, prompt in enumerate(map(first_prompt, rows))
        for row in reply_to(
            make_base(torch.float64), tokenizer, [prompt], max_seq_length=len(prompt.input_ids) + 2 + 3 * n
        )
    )


def conditions(model, monitored, safety=WATCHED, cache=None, **changes):
    data = RunData((), {}, cache or ReferenceCache({}), monitored=monitored)
    settings = {
        "data": data,
        "safety": safety,
        "law": safety.model_dump(),
        "method": build_method(safety, Layout(0, 0, 4, 1, 0)),
        "separable_head": True,
        "packed": can_pack(model),
        "max_grad_norm": 1.0,
        "micro_batch_tokens": 10_000,
    }
    return Conditions(**{**settings, **changes})


def drift_by_hand(model, base, rows):
    """Mean KL(base‖model) over the tokens of the replies, row by row."""
    total, n_tokens = 0.0, 0
    for row in rows:
        tokens = torch.tensor([row.input_ids])
        with torch.no_grad():
            q = torch.log_softmax(base(tokens).logits[0], -1)
            p = torch.log_softmax(model(tokens).logits[0], -1)
        first = row.prompt_ends[0]
        kl = (q.exp() * (q - p)).sum(-1)[first:-1]
        total, n_tokens = total + float(kl.sum()), n_tokens + len(kl)
    return total / n_tokens


def test_drift_is_the_kl_on_the_references_replies(make_model, make_base, make_spec, monitored):
    model, base = make_model(torch.float64, drift=0.2), make_base(torch.float64)
    expected = drift_by_hand(model, base, monitored)
    assert expected > 0.01
    for safety in (WATCHED, NoPenalty(), ConstrainedSFT(), WATCHED.model_copy(update={"penalty": "l2"})):
        for changes in ({}, {"packed": False}, {"micro_batch_tokens": 1}, {"separable_head": False}):
            found = measure_drift(model, conditions(model, monitored, safety, **changes))
            # Llama's norms run in float32.
            assert found == pytest.approx(expected, rel=1e-6)
        for n_epochs in (1, 3):
            spec = make_spec(safety=safety, n_epochs=n_epochs)
            cache = compute_row_targets(model, "monitor", monitored, spec, budget_bytes=PLENTY)
            assert len(cache.targets) == len(monitored)
            found = measure_drift(model, conditions(model, monitored, safety, cache))
            assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_at_the_start_there_is_no_drift(make_model, make_spec, monitored, dtype):
    model = make_model(dtype)
    assert measure_drift(model, conditions(model, monitored)) == 0.0
    for n_epochs in (1, 3):
        cache = compute_row_targets(
            model, "monitor", monitored, make_spec(safety=WATCHED, n_epochs=n_epochs), budget_bytes=PLENTY
        )
        assert measure_drift(model, conditions(model, monitored, cache=cache)) == pytest.approx(0.0, abs=1e-6)


def test_measuring_changes_neither_weights_nor_gradients(make_model, monitored):
    model = make_model(drift=0.2)
    parameters = trainable_parameters(model).values()
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    before = [parameter.detach().clone() for parameter in parameters]
    first = measure_drift(model, conditions(model, monitored))
    assert measure_drift(model, conditions(model, monitored)) == first
    assert all(torch.equal(one, other) for one, other in zip(before, parameters, strict=True))
    assert all(bool((parameter.grad == 1).all()) for parameter in parameters)


def test_a_broken_model_has_no_finite_drift(make_model, monitored):
    model = make_model()
    with torch.no_grad():
        next(iter(trainable_parameters(model).values()))[0, 0] = float("nan")
    assert not torch.isfinite(torch.tensor(measure_drift(model, conditions(model, monitored))))
