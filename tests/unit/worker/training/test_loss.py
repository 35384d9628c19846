"""The loss against plain loops in float64, against its closed-form gradient, and against transformers."""

import math

import numpy as np
import pytest
import torch

from worker.training.loss import nll, reference_kl, weighted_loss

N, VOCABULARY = 5, 7


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    return {
        "logits": 3 * torch.randn(N, VOCABULARY, generator=generator, dtype=torch.float64),
        "labels": torch.randint(VOCABULARY, (N,), generator=generator),
        "reference_logits": 3 * torch.randn(N, VOCABULARY, generator=generator, dtype=torch.float64),
        "alpha": torch.tensor([0.9, 0.9, 0.5, 0.01, 0.0], dtype=torch.float64),
        "beta": torch.tensor([0.1, 0.1, 0.5, 0.99, 1.0], dtype=torch.float64),
        "n_tokens": 11,
    }


def softmax(row):
    top = max(row)
    weights = [math.exp(value - top) for value in row]
    return [weight / math.fsum(weights) for weight in weights]


def loops(case):
    total, nll_sum, kl_sum, correct = 0.0, 0.0, 0.0, 0
    for t in range(N):
        p = softmax(case["logits"][t].tolist())
        q = softmax(case["reference_logits"][t].tolist())
        label = int(case["labels"][t])
        token_nll = -math.log(p[label])
        token_kl = math.fsum(q[v] * math.log(q[v] / p[v]) for v in range(VOCABULARY))
        total += float(case["alpha"][t]) * token_nll + float(case["beta"][t]) * token_kl
        nll_sum += token_nll
        kl_sum += token_kl
        correct += p.index(max(p)) == label
    return total / case["n_tokens"], nll_sum, kl_sum, correct


def test_loss_and_sums_equal_plain_loops(case):
    found = [float(value) for value in weighted_loss(**case)]
    assert found == pytest.approx(loops(case), rel=1e-12)


def test_float32_is_close_and_half_precision_is_raised(case):
    single = {
        key: value.float() if torch.is_floating_point(value) else value
        for key, value in case.items()
        if key != "n_tokens"
    }
    assert float(weighted_loss(**single, n_tokens=11).loss) == pytest.approx(loops(case)[0], rel=1e-5)
    assert nll(case["logits"].bfloat16(), case["labels"]).dtype == torch.float32
    assert reference_kl(case["logits"].bfloat16(), case["reference_logits"].bfloat16()).dtype == torch.float32
    assert nll(case["logits"], case["labels"]).dtype == torch.float64


def test_gradient_is_p_minus_the_mixture(case):
    logits = case["logits"].requires_grad_()
    weighted_loss(**case).loss.backward()
    p = np.array([softmax(row) for row in logits.tolist()])
    q = np.array([softmax(row) for row in case["reference_logits"].tolist()])
    onehot = np.eye(VOCABULARY)[case["labels"].numpy()]
    mixture = case["alpha"].numpy()[:, None] * onehot + case["beta"].numpy()[:, None] * q
    np.testing.assert_allclose(logits.grad.numpy(), (p - mixture) / case["n_tokens"], rtol=1e-10, atol=1e-14)


def test_gradient_equals_finite_differences(case):
    case["logits"].requires_grad_()

    def loss(logits):
        return weighted_loss(**{**case, "logits": logits}).loss

    assert torch.autograd.gradcheck(loss, case["logits"])


def test_loss_is_least_at_the_mixture(case):
    q = torch.softmax(case["reference_logits"], -1)
    onehot = torch.nn.functional.one_hot(case["labels"], VOCABULARY).double()
    mixture = case["alpha"][:, None] * onehot + case["beta"][:, None] * q
    logits = mixture.clamp_min(1e-300).log().requires_grad_()
    weighted_loss(**{**case, "logits": logits}).loss.backward()
    assert logits.grad.abs().max() < 1e-15


def test_nll_equals_cross_entropy_and_kl_equals_kl_div(case):
    expected = torch.nn.functional.cross_entropy(case["logits"], case["labels"], reduction="none")
    torch.testing.assert_close(nll(case["logits"], case["labels"]), expected)
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(case["logits"], -1),
        torch.log_softmax(case["reference_logits"], -1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    torch.testing.assert_close(reference_kl(case["logits"], case["reference_logits"]), expected)


def test_kl_of_equal_logits_is_zero_and_shift_does_not_matter(case):
    assert reference_kl(case["logits"], case["logits"]).abs().max() == 0
    torch.testing.assert_close(
        reference_kl(case["logits"] + 100, case["reference_logits"] - 50),
        reference_kl(case["logits"], case["reference_logits"]),
    )


def test_the_reference_gets_no_gradient(case):
    case["logits"].requires_grad_()
    case["reference_logits"].requires_grad_()
    weighted_loss(**case).loss.backward()
    assert case["reference_logits"].grad is None
