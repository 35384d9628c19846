"""One step: its gradient does not depend on how it is cut, and its record says what was done."""

import math

import numpy as np
import pytest
import torch

from app.domain.control_law import MonitorState
from app.domain.safety_spec import AdaptiveKL, Anchors, ConstantCritic, ConstrainedSFT, NoPenalty
from app.domain.step_plan import Layout, StepPlan
from worker.training.data import tokenize_rows
from worker.training.methods.registry import build_method
from worker.training.models import can_pack, trainable_parameters
from worker.training.reference import ReferenceCache, RowRisk, compute_row_targets
from worker.training.replies import Prompt, reply_to
from worker.training.step import Conditions, Controls, RunData, train_step

S = (0.0, 1.0, 0.5, 0.0, 0.25, 1.0, 0.0, 0.0, 0.75, 1.0)
ADAPTIVE = AdaptiveKL(
    critic=ConstantCritic(s=0.5),
    threshold=0.5,
    beta_min=0.1,
    beta_max=0.9,
    replay=False,
    anchors=None,
    monitor=None,
)
ANCHORED = ADAPTIVE.model_copy(update={"anchors": Anchors(weight=3.0)})


@pytest.fixture
def rows(make_tokenizer, training_rows):
    return tokenize_rows(make_tokenizer(), training_rows, max_seq_length=256, overlength="error").rows


@pytest.fixture
def anchors(make_model, make_tokenizer):
    prompts = [Prompt(n, tuple(range(n, n + 5 + n))) for n in range(3)]
    model = make_model(torch.float64)
    return reply_to(model, make_tokenizer(), prompts, max_seq_length=24, whole=True)


def conditions(model, data, safety=ADAPTIVE, **changes):
    settings = {
        "data": data,
        "safety": safety,
        "law": safety.model_dump(),
        "method": build_method(safety, Layout(len(data.rows), len(data.alignment), 4, 1, 0)),
        "separable_head": True,
        "packed": can_pack(model),
        "max_grad_norm": 1e9,
        "micro_batch_tokens": 10_000,
    }
    return Conditions(**{**settings, **changes})


def run(model, rows, lr=0.0, *, anchors=(), alignment=(), cache=None, risks=None, controls=None, **changes):
    """Take a step and return its record and the gradient, all parameters in one vector."""
    parameters = trainable_parameters(model).values()
    optimizer = torch.optim.AdamW(parameters)
    data = RunData(
        rows=tuple(rows),
        risks=risks or {row: RowRisk(row, {}, s, "constant") for row, s in enumerate(S)},
        cache=cache or ReferenceCache({}),
        anchors=tuple(anchors),
        alignment=tuple(alignment),
    )
    plan = StepPlan(0, tuple(range(len(rows))), tuple(range(len(alignment))))
    record, _ = train_step(
        model,
        optimizer,
        plan,
        range(len(anchors)),
        conditions(model, data, **changes),
        controls or Controls(),
        step=1,
        lr=lr,
    )
    return record, torch.cat([parameter.grad.flatten() for parameter in parameters])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_step_does_not_depend_on_its_micro_batches(make_model, rows, dtype, tolerance):
    model = make_model(dtype, drift=0.2)
    whole, gradient = run(model, rows)
    for budget, packed in ((1, True), (70, True), (70, False), (130, True), (300, False)):
        record, found = run(model, rows, micro_batch_tokens=budget, packed=packed)
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


@pytest.mark.parametrize("n_epochs", [1, 3])
@pytest.mark.parametrize("penalty", ["forward_kl", "reverse_kl", "l2"])
def test_the_cache_gives_the_same_as_the_live_reference(make_model, make_spec, rows, penalty, n_epochs):
    model = make_model(torch.float64, drift=0.2)
    safety = ADAPTIVE.model_copy(update={"penalty": penalty})
    record, gradient = run(model, rows, safety=safety)
    cache = compute_row_targets(
        model, "user", rows, make_spec(safety=safety, n_epochs=n_epochs), budget_bytes=10**9
    )
    assert len(cache.targets) == len(rows)
    cached, found = run(model, rows, cache=cache, safety=safety)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)
    assert cached.kl == pytest.approx(record.kl, rel=1e-9)
    plain, found = run(model, rows, separable_head=False, safety=safety)
    # Llama's norms run in float32, and for l2 the plain path goes through them twice.
    assert (found - gradient).norm() <= 1e-6 * gradient.norm()
    assert plain.kl == pytest.approx(record.kl, rel=1e-9)


def test_without_penalty_the_loss_is_the_one_of_transformers(make_model, rows):
    model = make_model(torch.float64, drift=0.2)
    record, gradient = run(model, rows[:1], safety=NoPenalty())
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


def test_at_the_start_there_is_no_kl(make_model, rows, anchors):
    record, _ = run(make_model(torch.float64), rows, anchors=anchors, safety=ANCHORED)
    assert (record.kl, record.anchor_kl) == (0.0, 0.0)


def test_anchors_enter_as_their_mean_kl_on_replies_and_half_that_on_prompts(make_model, rows, anchors):
    model = make_model(torch.float64, drift=0.2)
    record, gradient = run(model, rows, anchors=anchors, safety=ANCHORED)
    bare, own = run(model, rows)
    parameters = list(trainable_parameters(model).values())
    for parameter in parameters:
        parameter.grad = None
    total, n_reply = 0.0, sum(len(row.input_ids) - row.prompt_ends[0] - 1 for row in anchors)
    n_prompt = sum(row.prompt_ends[0] for row in anchors)
    for row in anchors:
        tokens = torch.tensor([row.input_ids])
        with torch.no_grad(), model.disable_adapter():
            q = torch.log_softmax(model(tokens, use_cache=False).logits[0], -1)
        p = torch.log_softmax(model(tokens, use_cache=False).logits[0], -1)
        kl = (q.exp() * (q - p)).sum(-1)[:-1]
        end = row.prompt_ends[0]
        total = total + kl[end:].sum() / n_reply + 0.5 * kl[:end].sum() / n_prompt
    (3.0 * total).backward()
    expected = own + torch.cat([parameter.grad.flatten() for parameter in parameters])
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
    assert record.anchor_kl == pytest.approx(float(total.detach()), rel=1e-6)
    assert record.loss == pytest.approx(bare.loss + 3.0 * record.anchor_kl)
    assert (record.nll, record.tokens) == (pytest.approx(bare.nll), bare.tokens)
    assert record.anchors == (0, 1, 2)


def test_the_monitor_raises_floor_and_anchor_weight(make_model, rows, anchors):
    controls = Controls(MonitorState(floor=0.3, anchor_factor=4.0))
    record, _ = run(make_model(drift=0.2), rows, anchors=anchors, safety=ANCHORED, controls=controls)
    assert (record.floor, record.anchor_weight) == (0.3, 12.0)
    assert record.beta_mean == pytest.approx(np.maximum(0.1 + 0.8 * np.array(S), 0.3).mean())


def test_a_floor_holds_a_method_without_a_penalty_of_its_own(make_model, rows):
    model = make_model(torch.float64, drift=0.2)
    record, gradient = run(model, rows, safety=NoPenalty(), controls=Controls(MonitorState(floor=0.4)))
    constant = {row: RowRisk(row, {}, 0.375, "constant") for row in range(10)}
    _, expected = run(model, rows, risks=constant)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    assert (record.beta_mean, record.kl) == (0.4, None), "KL is reported by methods that steer by it"


def test_alignment_rows_are_trained_plainly_beside_the_users(make_model, rows):
    model = make_model(torch.float64, drift=0.2)
    record, gradient = run(model, rows[:2], alignment=rows[4:6], safety=NoPenalty())
    whole, expected = run(model, [rows[0], rows[1], rows[4], rows[5]], safety=NoPenalty())
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    assert (record.rows, record.alignment_rows) == ((0, 1), (4, 5))
    assert record.tokens == whole.tokens
    alone, _ = run(model, [], alignment=rows[4:6])
    assert (alone.rows, alone.risk_mean, alone.kl, alone.beta_max) == ((), None, None, 0.0)


def test_constrained_sft_is_the_weighted_gradient_of_nll(make_model, rows):
    model = make_model(torch.float64, drift=0.4)
    record, gradient = run(model, rows, safety=ConstrainedSFT())
    parameters = list(trainable_parameters(model).values())
    for parameter in parameters:
        parameter.grad = None
    total, loss, n_tokens = 0.0, 0.0, sum(row.loss_tokens for row in rows)
    for row in rows:
        tokens = torch.tensor([row.input_ids])
        with torch.no_grad(), model.disable_adapter():
            q = torch.log_softmax(model(tokens, use_cache=False).logits[0], -1)
        p = torch.log_softmax(model(tokens, use_cache=False).logits[0], -1)
        place = 0
        for position, bears in enumerate(row.loss_mask):
            place = place + 1 if bears else 0
            if bears:
                strength = {1: 0.5}.get(place, 2.0 if place <= 5 else 0.1)
                log_p = p[position - 1, row.input_ids[position]]
                gap = strength * (log_p.detach() - q[position - 1, row.input_ids[position]])
                total = total - max(1e-3, 2 * float(torch.sigmoid(-gap))) * log_p
                loss += -2 / strength * float(torch.nn.functional.logsigmoid(gap))
    (total / n_tokens).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in parameters])
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
    assert record.loss == pytest.approx(loss / n_tokens, rel=1e-6)


def test_the_record(make_model, rows):
    controls = Controls(MonitorState(floor=0.2))
    record, _ = run(make_model(drift=0.2), rows[:4], lr=0.5, controls=controls)
    assert record.rows == (0, 1, 2, 3)
    assert record.tokens == sum(row.loss_tokens for row in rows[:4])
    assert (record.risk_mean, record.risk_max) == (0.375, 1.0)
    betas = (0.2, 0.9, 0.5, 0.2)
    assert record.beta_mean == math.fsum(betas) / 4
    assert (record.beta_max, record.alpha_min) == (0.9, 1 - 0.9)
    assert (record.lr, record.floor) == (0.5, 0.2)
    assert 0 <= record.token_accuracy <= 1
    assert not record.skipped


def test_without_a_critic_there_is_no_risk(make_model, rows):
    risks = {row.index: RowRisk(row.index, {}, None, "unmeasured") for row in rows}
    record, _ = run(make_model(drift=0.2), rows, safety=NoPenalty(), risks=risks)
    assert (record.risk_mean, record.risk_max) == (None, None)
    assert (record.alpha_mean, record.beta_max) == (1.0, 0.0)
    assert record.kl is None


def test_the_gradient_is_clipped_and_its_norm_recorded_before(make_model, rows):
    full, gradient = run(make_model(drift=0.2), rows)
    clipped, found = run(make_model(drift=0.2), rows, max_grad_norm=0.01)
    assert clipped.grad_norm == full.grad_norm == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert float(found.norm()) == pytest.approx(0.01, rel=1e-4)


def test_a_loss_that_is_not_finite_is_recorded_and_changes_no_weight(make_model, rows):
    model = make_model(drift=0.2)
    parameters = list(trainable_parameters(model).values())
    with torch.no_grad():
        parameters[0][0, 0] = float("inf")
    before = [parameter.clone() for parameter in parameters]
    record, _ = run(model, rows[:2], lr=0.1)
    assert record.skipped
    assert math.isnan(record.loss)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_a_bfloat16_base_trains_in_float32(make_model, rows):
    record, gradient = run(make_model(torch.bfloat16, drift=0.2), rows)
    exact, _ = run(make_model(torch.float32, drift=0.2), rows)
    assert gradient.dtype == torch.float32
    assert record.loss == pytest.approx(exact.loss, rel=0.05)
