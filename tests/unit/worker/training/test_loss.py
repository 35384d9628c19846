"""The loss against an independent float64 formula, finite differences, and torch's own losses."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from worker.training.loss import (
    CONSTRAINT_FLOOR,
    head_loss,
    head_nll,
    kl,
    log_probabilities,
    logits_loss,
    nll,
)
from worker.training.targets import ReferenceTargets, compute_targets

N, HIDDEN, VOCABULARY = 13, 6, 11

PATHS = [
    ("forward_kl", "states"),
    ("forward_kl", "expectation"),
    ("reverse_kl", "states"),
    ("l2", "states"),
]


class Case(NamedTuple):
    states: Tensor
    reference_states: Tensor
    head: nn.Linear
    labels: Tensor
    alpha: Tensor
    beta: Tensor
    constraint: Tensor

    def targets(self, kind, **options):
        return compute_targets(
            self.reference_states, self.labels, self.head, kind=kind, label_log_p=True, **options
        )

    def cast(self, dtype):
        """Round states and head to `dtype`; alpha and beta are as a step gives them."""
        head = nn.Linear(*reversed(self.head.weight.shape), bias=self.head.bias is not None, dtype=dtype)
        head.load_state_dict(self.head.state_dict())
        return self._replace(
            states=self.states.to(dtype),
            reference_states=self.reference_states.to(dtype),
            head=head.requires_grad_(False),
        )


def make_case(*, bias=False, scale=1.0, n=N, vocabulary=VOCABULARY, hidden=HIDDEN, drift=0.5):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    head = nn.Linear(hidden, vocabulary, bias=bias, dtype=torch.float64).requires_grad_(False)
    for parameter in head.parameters():
        parameter.copy_(scale * draw(*parameter.shape))
    states = draw(n, hidden)
    alpha, beta = torch.rand(2, n, generator=generator, dtype=torch.float64)
    alpha[: n // 3], beta[n // 4 : n // 2] = 0, 0
    constraint = 2 * torch.rand(n, generator=generator, dtype=torch.float64)
    constraint[::4] = 0
    labels = torch.randint(vocabulary, (n,), generator=generator)
    labels[1::3] = head(states[1::3]).argmax(1)
    return Case(
        states,
        states + drift * draw(n, hidden),
        head,
        labels,
        alpha,
        beta,
        constraint,
    )


def formula(case, penalty, constraint=None):
    """Return loss, NLL, penalty and gradient in float64: softmaxes written out, differentiated by autograd."""
    h, h_ref = case.states.double().clone().requires_grad_(), case.reference_states.double()
    weight = case.head.weight.double()
    bias = 0.0 if case.head.bias is None else case.head.bias.double()
    z, z_ref = h @ weight.t() + bias, h_ref @ weight.t() + bias
    log_p = z - torch.logsumexp(z, 1, keepdim=True)
    log_q = z_ref - torch.logsumexp(z_ref, 1, keepdim=True)
    p, q = log_p.exp(), log_q.exp()
    token_nll = torch.stack([-log_p[i, label] for i, label in enumerate(case.labels.tolist())])
    reference_nll = torch.stack([-log_q[i, label] for i, label in enumerate(case.labels.tolist())])
    token_penalty = {
        "forward_kl": (q * (log_q - log_p)).sum(1),
        "reverse_kl": (p * (log_p - log_q)).sum(1),
        "l2": ((h - h_ref) ** 2).sum(1) / h.shape[1],
    }[penalty]
    fit = token_nll
    if constraint is not None:
        ratio = reference_nll - token_nll
        fit = torch.stack(
            [
                -2 / c * torch.log(1 / (1 + torch.exp(-c * ratio[i]))) if c > 0 else token_nll[i]
                for i, c in enumerate(constraint.tolist())
            ]
        )
    loss = (case.alpha * fit + case.beta * token_penalty).sum()
    (gradient,) = torch.autograd.grad(loss, h)
    return loss.detach(), token_nll.detach(), token_penalty.detach(), gradient


def run(case, penalty, kind, constraint=None, **options):
    """Return what `head_loss` returns and the gradient that it leaves."""
    states = case.states.clone().requires_grad_()
    targets = None if kind is None else case.targets(kind)
    found = head_loss(
        states,
        case.head,
        case.labels,
        targets,
        case.alpha,
        case.beta,
        penalty=penalty,
        constraint=constraint,
        **options,
    )
    # A factor, because a caller's backward may come with a gradient other than 1.
    torch.autograd.backward(3 * found.loss)
    return found, states.grad / 3


def run_plain(case, penalty, constraint=None):
    states = case.states.clone().requires_grad_()
    found = logits_loss(
        case.head(states),
        case.labels,
        case.head(case.reference_states),
        case.alpha,
        case.beta,
        penalty=penalty,
        constraint=constraint,
        states=states,
        reference_states=case.reference_states,
    )
    torch.autograd.backward(3 * found.loss)
    return found, states.grad / 3


def assert_equals_formula(found, gradient, case, penalty, constraint=None, **tolerance):
    expected = formula(case, penalty, constraint)
    for part, value in zip((found.loss, found.nll, found.penalty, gradient), expected, strict=True):
        torch.testing.assert_close(part.detach().double(), value, **tolerance)


@pytest.mark.parametrize(("penalty", "kind"), PATHS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("constrained", [False, True])
def test_every_path_equals_the_formula(penalty, kind, bias, constrained):
    case = make_case(bias=bias)
    constraint = case.constraint if constrained else None
    found, gradient = run(case, penalty, kind, constraint)
    assert_equals_formula(found, gradient, case, penalty, constraint, rtol=1e-12, atol=1e-13)
    assert torch.equal(found.correct, case.head(case.states).argmax(1) == case.labels)
    assert 0 < found.correct.sum() < N


@pytest.mark.parametrize("penalty", ["forward_kl", "reverse_kl", "l2"])
@pytest.mark.parametrize("constrained", [False, True])
def test_the_plain_path_equals_the_formula(penalty, constrained):
    case = make_case(bias=True)
    constraint = case.constraint if constrained else None
    found, gradient = run_plain(case, penalty, constraint)
    assert_equals_formula(found, gradient, case, penalty, constraint, rtol=1e-12, atol=1e-13)
    assert torch.equal(found.correct, run(case, penalty, "states")[0].correct)


@pytest.mark.parametrize(("penalty", "kind"), PATHS)
def test_gradient_equals_finite_differences(penalty, kind):
    case = make_case(bias=True, n=4, vocabulary=5, hidden=3)
    targets = case.targets(kind)

    def loss(states):
        return head_loss(
            states,
            case.head,
            case.labels,
            targets,
            case.alpha,
            case.beta,
            penalty=penalty,
            constraint=case.constraint,
        ).loss

    assert torch.autograd.gradcheck(loss, case.states.clone().requires_grad_())


@pytest.mark.parametrize(("penalty", "kind"), PATHS)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 3e-6), (torch.bfloat16, 0.02)])
def test_smaller_types_are_close_to_the_formula_on_the_same_numbers(penalty, kind, dtype, rtol):
    case = make_case(bias=True, n=64, vocabulary=300, hidden=32, scale=0.3).cast(dtype)
    found, gradient = run(case, penalty, kind, case.constraint)
    loss, _, _, expected = formula(case, penalty, case.constraint)
    assert found.nll.dtype == found.penalty.dtype == found.loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert float(found.loss.detach()) == pytest.approx(float(loss), rel=rtol)
    assert (gradient - expected).norm() < rtol * expected.norm()


@pytest.mark.parametrize(("penalty", "kind"), PATHS)
def test_chunks_and_micro_batches_change_nothing(penalty, kind):
    case = make_case()
    whole, gradient = run(case, penalty, kind, case.constraint)
    for chunk_rows in (1, 5, N):
        found, chunk_gradient = run(case, penalty, kind, case.constraint, chunk_rows=chunk_rows)
        for part, expected in zip((*found, chunk_gradient), (*whole, gradient), strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-14)
    halves = [
        run(
            Case(*(part if isinstance(part, nn.Module) else part[half] for part in case)),
            penalty,
            kind,
            case.constraint[half],
        )
        for half in (slice(0, 6), slice(6, N))
    ]
    torch.testing.assert_close(sum(found.loss for found, _ in halves), whole.loss)
    torch.testing.assert_close(torch.cat([part for _, part in halves]), gradient)


@pytest.mark.parametrize(("penalty", "kind"), PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_penalty_vanishes_where_the_model_is_its_reference(penalty, kind, dtype):
    case = make_case(bias=True, n=50, vocabulary=500, hidden=32).cast(dtype)
    case = case._replace(reference_states=case.states, alpha=torch.zeros_like(case.alpha))
    found, gradient = run(case, penalty, kind)
    assert found.penalty.abs().max() < 1e-14
    assert gradient.abs().max() == 0


@pytest.mark.parametrize(("kind", "atol"), [("states", 5e-7), ("expectation", 4e-6)])
def test_a_small_kl_is_measured_and_not_rounded_away(kind, atol):
    case = make_case(n=200, vocabulary=500, hidden=32, scale=0.5, drift=2e-3).cast(torch.float32)
    found, _ = run(case, "forward_kl", kind)
    expected = formula(case, "forward_kl")[2]
    # The logits are around 10, where float32 steps by 1e-6.
    assert 1e-5 < expected.mean() < 2e-5
    assert (found.penalty - expected).abs().max() < atol
    assert float(found.penalty.double().mean()) == pytest.approx(float(expected.mean()), rel=0.02)


@pytest.mark.parametrize(("penalty", "kind"), PATHS)
def test_extreme_logits_stay_finite_and_right(penalty, kind):
    case = make_case(scale=1e4).cast(torch.float32)
    assert case.head(case.states).abs().max() > 2e4
    found, gradient = run(case, penalty, kind)
    loss, token_nll, token_penalty, expected = formula(case, penalty)
    # float32 steps by 2e-3 there, and a softmax follows its logits.
    torch.testing.assert_close(found.nll.double(), token_nll, rtol=1e-6, atol=0.01)
    torch.testing.assert_close(found.penalty.double(), token_penalty, rtol=1e-6, atol=0.01)
    assert float(found.loss.detach()) == pytest.approx(float(loss), rel=1e-6)
    assert (gradient - expected).norm() < 3e-3 * expected.norm()


def test_a_reference_that_rules_words_out():
    case = make_case(vocabulary=5, bias=True).cast(torch.float32)
    case = case._replace(reference_states=300 * case.reference_states)
    q = torch.softmax(case.head(case.reference_states), 1)
    assert (q == 0).any()
    for kind in ("states", "expectation"):
        found, gradient = run(case, "forward_kl", kind)
        # Its logits are around 1,000, where float32 steps by 6e-5.
        assert_equals_formula(found, gradient, case, "forward_kl", rtol=1e-5, atol=5e-4)


def test_positions_without_weight_get_no_gradient():
    case = make_case()
    case.alpha[2], case.beta[2] = 0, 0
    for penalty, kind in PATHS:
        _, gradient = run(case, penalty, kind, case.constraint)
        assert gradient[2].abs().max() == 0
        assert (gradient.abs().amax(1) > 0).sum() >= N - 3


def test_no_positions_make_no_loss():
    case = make_case(n=0)
    for penalty, kind in PATHS:
        found, gradient = run(case, penalty, kind, case.constraint)
        assert found.loss == 0
        assert found.nll.shape == found.penalty.shape == found.correct.shape == (0,)
        assert gradient.shape == (0, HIDDEN)


def test_without_a_reference_the_penalty_is_unknown_and_may_not_count():
    case = make_case()
    plain = case._replace(beta=torch.zeros_like(case.beta))
    for targets in (None, plain.targets(None)):
        found = head_loss(plain.states, plain.head, plain.labels, targets, plain.alpha, plain.beta)
        assert found.penalty.isnan().all()
        torch.testing.assert_close(found.loss, formula(plain, "forward_kl")[0])
        assert head_loss(case.states, case.head, case.labels, targets, case.alpha, case.beta).loss.isnan()
    _, gradient = run(plain, "forward_kl", None)
    torch.testing.assert_close(gradient, formula(plain, "forward_kl")[3])
    logits = case.head(case.states)
    for penalty in ("forward_kl", "l2"):
        found = logits_loss(logits, case.labels, None, plain.alpha, plain.beta, penalty=penalty)
        assert found.penalty.isnan().all()
        torch.testing.assert_close(found.loss, formula(plain, "forward_kl")[0])
        assert logits_loss(logits, case.labels, None, case.alpha, case.beta, penalty=penalty).loss.isnan()


def test_what_is_missing_is_named():
    case = make_case()

    def loss(targets, **options):
        head_loss(case.states, case.head, case.labels, targets, case.alpha, case.beta, **options)

    for penalty in ("reverse_kl", "l2"):
        with pytest.raises(ValueError, match=f"{penalty} needs the reference's states"):
            loss(case.targets("expectation"), penalty=penalty)
    for targets in (None, ReferenceTargets(states=case.reference_states)):
        with pytest.raises(ValueError, match="label_log_p"):
            loss(targets, constraint=case.constraint)
    logits = case.head(case.states)
    with pytest.raises(ValueError, match="reference_logits"):
        logits_loss(logits, case.labels, None, case.alpha, case.beta, constraint=case.constraint)
    with pytest.raises(ValueError, match="reference_states"):
        logits_loss(logits, case.labels, None, case.alpha, case.beta, penalty="l2", states=case.states)
    case.head.weight.requires_grad_()
    with pytest.raises(ValueError, match="freeze the head"):
        loss(None)


@pytest.mark.parametrize("plain_path", [False, True])
def test_a_constraint_that_is_long_satisfied_pushes_at_the_floor(plain_path):
    case = make_case(drift=0.0)
    labels = case.head(case.states).argmax(1)
    case = case._replace(
        labels=labels,
        reference_states=-4 * case.states,
        alpha=torch.ones_like(case.alpha),
        beta=torch.zeros_like(case.beta),
    )
    strength = torch.full_like(case.alpha, 2.0)
    constrained = run_plain if plain_path else lambda *given: run(given[0], given[1], "states", given[2])
    _, gradient = constrained(case, "forward_kl", strength)
    plain = formula(case, "forward_kl")
    reference_nll = nll(log_probabilities(case.head(case.reference_states)), labels)
    weight = 2 / (1 + torch.exp(strength * (reference_nll - plain[1])))
    floored = weight < CONSTRAINT_FLOOR
    assert floored.any()
    expected = weight.where(~floored, CONSTRAINT_FLOOR)[:, None] * plain[3]
    torch.testing.assert_close(gradient, expected)


def test_the_paths_to_the_forward_kl_agree():
    case = make_case(bias=True)
    results = [run(case, "forward_kl", "states"), run(case, "forward_kl", "expectation")]
    results.append(run_plain(case, "forward_kl"))
    for found, gradient in results[1:]:
        for part, expected in zip((*found, gradient), (*results[0][0], results[0][1]), strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-13)


def test_the_loss_is_least_at_the_mixture():
    case = make_case()
    q = torch.softmax(case.head(case.reference_states), -1)
    onehot = torch.nn.functional.one_hot(case.labels, VOCABULARY).double()
    alpha, beta = case.alpha + 0.1, case.beta + 0.1
    mixture = (alpha[:, None] * onehot + beta[:, None] * q) / (alpha + beta)[:, None]
    logits = mixture.log().requires_grad_()
    found = logits_loss(logits, case.labels, case.head(case.reference_states), alpha, beta)
    torch.autograd.backward(found.loss)
    assert logits.grad.abs().max() < 1e-15


def test_the_reference_gets_no_gradient():
    case = make_case()
    reference_states = case.reference_states.requires_grad_()
    for penalty in ("forward_kl", "reverse_kl", "l2"):
        run_plain(case, penalty)
        run(case, penalty, "states")
    assert reference_states.grad is None


def test_without_a_gradient_to_compute_none_is():
    case = make_case()
    found = head_loss(case.states, case.head, case.labels, case.targets("states"), case.alpha, case.beta)
    assert not found.loss.requires_grad
    torch.testing.assert_close(found.loss, formula(case, "forward_kl")[0])
    with torch.no_grad():
        states = case.states.clone().requires_grad_()
        found = head_loss(states, case.head, case.labels, None, case.alpha, case.beta * 0)
    assert not found.loss.requires_grad


class Allocations(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            # A transpose of the head's weight is as large as the weight, and a view.
            if isinstance(part, Tensor) and part.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, part.numel())
        return result

    def __init__(self, *known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}


@pytest.mark.parametrize(("penalty", "kind"), PATHS)
def test_nothing_wider_than_a_chunk_is_made_and_nothing_as_wide_is_kept(penalty, kind):
    n, vocabulary, chunk_rows = 160, 64, 10
    case = make_case(n=n, vocabulary=vocabulary)
    targets = case.targets(kind)
    states = case.states.clone().requires_grad_()
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        Allocations(case.head.weight, states) as allocations,
    ):
        found = head_loss(
            states,
            case.head,
            case.labels,
            targets,
            case.alpha,
            case.beta,
            penalty=penalty,
            chunk_rows=chunk_rows,
        )
        torch.autograd.backward(found.loss)
    assert allocations.largest == max(chunk_rows * vocabulary, n * HIDDEN)
    assert [tensor.shape for tensor in kept] == [(n, HIDDEN)]


@pytest.mark.parametrize(("penalty", "kind"), [*PATHS, ("forward_kl", None)])
def test_the_host_never_waits_for_the_device(penalty, kind):
    # On the meta device there are no numbers, so whatever would bring one to the host raises.
    case = make_case(bias=True)
    targets = ReferenceTargets() if kind is None else case.targets(kind)
    targets = targets.to(torch.device("meta"))
    moved = [part.to("meta") for part in case]
    states, _, head, labels, alpha, beta, constraint = moved
    states = states.detach().requires_grad_()
    found = head_loss(
        states,
        head,
        labels,
        targets,
        alpha,
        beta,
        penalty=penalty,
        constraint=constraint if kind else None,
    )
    torch.autograd.backward(found.loss)
    assert states.grad.shape == states.shape


def test_the_nll_of_a_validation_needs_the_head_only():
    case = make_case(bias=True)
    logits = case.head(case.states)
    for chunk_rows in (None, 4):
        token_nll, correct = head_nll(case.states, case.head, case.labels, chunk_rows=chunk_rows)
        torch.testing.assert_close(
            token_nll, torch.nn.functional.cross_entropy(logits, case.labels, reduction="none")
        )
        assert torch.equal(correct, logits.argmax(1) == case.labels)


def test_nll_equals_cross_entropy_and_kl_equals_kl_div():
    case = make_case()
    logits, reference_logits = case.head(case.states), case.head(case.reference_states)
    log_p, log_q = log_probabilities(logits), log_probabilities(reference_logits)
    torch.testing.assert_close(
        nll(log_p, case.labels),
        torch.nn.functional.cross_entropy(logits, case.labels, reduction="none"),
    )
    expected = torch.nn.functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl(log_q, log_p), expected)
    assert kl(log_p, log_p).abs().max() == 0
    torch.testing.assert_close(log_probabilities(logits + 100), log_p)
    assert log_probabilities(logits.bfloat16()).dtype == torch.float32


def test_a_tie_counts_as_right():
    head = nn.Linear(2, 3, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    states = torch.tensor([[1.0, 0.5], [1.0, 0.5], [1.0, 0.9999]])
    token_nll, correct = head_nll(states, head, torch.tensor([0, 1, 2]))
    assert correct.tolist() == [True, True, False]
    expected = math.log(2 * math.e + math.sqrt(math.e)) - 1
    assert token_nll[:2].tolist() == pytest.approx([expected, expected], rel=1e-6)
