"""One step: its gradient does not depend on how it is cut, and its record says what was done."""

import math

import pytest
import torch

from app.domain.training_spec import AdaptiveKL, NoPenalty
from app.errors import JobFailure
from worker.training.data import tokenize_rows
from worker.training.models import trainable_parameters
from worker.training.reference import ReferenceCache, RowRisk, run_reference_pass
from worker.training.step import Conditions, train_step

S = (0.0, 1.0, 0.5, 0.0, 0.25, 1.0, 0.0, 0.0, 0.75, 1.0)


@pytest.fixture
def rows(make_tokenizer, training_rows):
    return tokenize_rows(make_tokenizer(), training_rows, max_seq_length=256, overlength="error").rows


def conditions(**changes):
    settings = {
        "safety": AdaptiveKL(beta_min=0.1, beta_max=0.9),
        "risks": {row: RowRisk(row, None, s, "constant") for row, s in enumerate(S)},
        "cache": ReferenceCache({}),
        "separable_head": True,
        "max_grad_norm": 1e9,
        "micro_batch_tokens": 10_000,
        "floor": 0.0,
    }
    return Conditions(**{**settings, **changes})


def run(model, rows, lr=0.0, **changes):
    """Take a step and return its record and the gradient, all parameters in one vector."""
    parameters = trainable_parameters(model).values()
    optimizer = torch.optim.AdamW(parameters)
    record = train_step(model, optimizer, rows, conditions(**changes), step=1, data_epoch=0, lr=lr)
    return record, torch.cat([parameter.grad.flatten() for parameter in parameters])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_the_step_does_not_depend_on_its_micro_batches(make_model, rows, dtype, tolerance):
    model = make_model(dtype, drift=0.2)
    whole, gradient = run(model, rows)
    for budget in (1, 70, 130, 300):
        record, found = run(model, rows, micro_batch_tokens=budget)
        assert (found - gradient).norm() <= tolerance * gradient.norm()
        for name in ("loss", "nll", "kl", "token_accuracy", "grad_norm"):
            assert getattr(record, name) == pytest.approx(getattr(whole, name), rel=tolerance)


def test_the_step_does_not_depend_on_the_order_of_its_rows(make_model, rows):
    model = make_model(torch.float64, drift=0.2)
    _, gradient = run(model, rows)
    _, found = run(model, rows[::-1], micro_batch_tokens=100)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)


def test_the_plain_path_gives_the_same(make_model, rows):
    model = make_model(torch.float64, drift=0.2)
    record, gradient = run(model, rows)
    plain, found = run(model, rows, separable_head=False)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)
    assert plain.loss == pytest.approx(record.loss, rel=1e-12)


def test_the_cache_gives_the_same_as_the_live_reference(make_model, rows):
    model = make_model(torch.float64, drift=0.2)
    record, gradient = run(model, rows)
    cache = run_reference_pass(model, rows, None, cache_budget_bytes=10**9).cache
    cached, found = run(model, rows, cache=cache)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)
    assert cached.kl == pytest.approx(record.kl, rel=1e-9)


def test_without_penalty_the_loss_is_the_one_of_transformers(make_model, rows):
    model = make_model(torch.float64, drift=0.2)
    record, gradient = run(model, rows[:1], safety=NoPenalty(method="none"))
    labels = [
        token if bears else -100 for token, bears in zip(rows[0].input_ids, rows[0].loss_mask, strict=True)
    ]
    for parameter in trainable_parameters(model).values():
        parameter.grad = None
    loss = model(input_ids=torch.tensor([rows[0].input_ids]), labels=torch.tensor([labels])).loss
    loss.backward()
    # transformers takes the loss in float32.
    assert record.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    expected = torch.cat([parameter.grad.flatten() for parameter in trainable_parameters(model).values()])
    assert (gradient - expected).norm() <= 1e-6 * expected.norm()


def test_weights_are_per_row_and_normalised_by_tokens(make_model, rows):
    model = make_model(torch.float64, drift=0.2)
    record, _ = run(model, rows)
    total = 0.0
    for row in rows:
        alone, _ = run(model, [row])
        beta = 0.1 + 0.8 * S[row.index]
        assert alone.beta_mean == pytest.approx(beta)
        assert alone.loss == pytest.approx((1 - beta) * alone.nll + beta * alone.kl)
        total += alone.loss * row.loss_tokens
    assert record.loss == pytest.approx(total / record.tokens)


def test_at_the_start_there_is_no_kl(make_model, rows):
    record, _ = run(make_model(torch.float64), rows)
    assert record.kl == 0.0


def test_the_record(make_model, rows):
    record, _ = run(make_model(drift=0.2), rows[:4], lr=0.5, floor=0.2)
    assert record.rows == (0, 1, 2, 3)
    assert record.tokens == sum(row.loss_tokens for row in rows[:4])
    assert (record.risk_mean, record.risk_max) == (0.375, 1.0)
    betas = (0.2, 0.9, 0.5, 0.2)
    assert record.beta_mean == math.fsum(betas) / 4
    assert (record.beta_max, record.alpha_min) == (0.9, 1 - 0.9)
    assert (record.lr, record.floor) == (0.5, 0.2)
    assert 0 <= record.token_accuracy <= 1


def test_without_a_critic_there_is_no_risk(make_model, rows):
    risks = {row.index: RowRisk(row.index, None, None, "unmeasured") for row in rows}
    record, _ = run(make_model(drift=0.2), rows, safety=NoPenalty(method="none"), risks=risks)
    assert (record.risk_mean, record.risk_max) == (None, None)
    assert (record.alpha_mean, record.beta_max) == (1.0, 0.0)
    assert record.kl > 0


def test_the_gradient_is_clipped_and_its_norm_recorded_before(make_model, rows):
    full, gradient = run(make_model(drift=0.2), rows)
    clipped, found = run(make_model(drift=0.2), rows, max_grad_norm=0.01)
    assert clipped.grad_norm == full.grad_norm == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert float(found.norm()) == pytest.approx(0.01, rel=1e-4)


def test_a_loss_that_is_not_finite_ends_the_job_before_the_weights_change(make_model, rows):
    model = make_model(drift=0.2)
    parameters = list(trainable_parameters(model).values())
    with torch.no_grad():
        parameters[0][0, 0] = float("inf")
    before = [parameter.clone() for parameter in parameters]
    with pytest.raises(JobFailure, match=r"step 1: the loss is nan .* on rows 0, 1") as caught:
        run(model, rows[:2], lr=0.1)
    assert caught.value.code == "nonfinite_loss"
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_a_bfloat16_base_trains_in_float32(make_model, rows):
    record, gradient = run(make_model(torch.bfloat16, drift=0.2), rows)
    exact, _ = run(make_model(torch.float32, drift=0.2), rows)
    assert gradient.dtype == torch.float32
    assert record.loss == pytest.approx(exact.loss, rel=0.05)
