"""What is kept of the reference, against plain loops in float64."""

import math

import pytest
import torch
from torch import nn

from worker.training.targets import ReferenceTargets, compute_targets

N, HIDDEN, VOCABULARY = 6, 4, 7


def make_case(bias, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=bias, dtype=dtype).requires_grad_(False)
    for parameter in head.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    states = torch.randn(N, HIDDEN, generator=generator, dtype=torch.float64).to(dtype)
    return states, torch.randint(VOCABULARY, (N,), generator=generator), head


def loops(states, labels, head):
    """Return expectation, negative entropy and Σ p·b, and the labels' log-probabilities."""
    weight = head.weight.tolist()
    bias = [0.0] * VOCABULARY if head.bias is None else head.bias.tolist()
    expectations, neg_entropies, log_ps = [], [], []
    for h, label in zip(states.tolist(), labels.tolist(), strict=True):
        z = [
            math.fsum(a * b for a, b in zip(row, h, strict=True)) + c
            for row, c in zip(weight, bias, strict=True)
        ]
        top = max(z)
        log_total = top + math.log(math.fsum(math.exp(value - top) for value in z))
        p = [math.exp(value - log_total) for value in z]
        expectations.append(
            [math.fsum(p[v] * weight[v][k] for v in range(VOCABULARY)) for k in range(HIDDEN)]
        )
        entropy = math.fsum(-p[v] * math.log(p[v]) for v in range(VOCABULARY))
        neg_entropies.append(-entropy - math.fsum(p[v] * bias[v] for v in range(VOCABULARY)))
        log_ps.append(z[label] - log_total)
    return expectations, neg_entropies, log_ps


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_rows", [None, 1, 4])
def test_targets_equal_plain_loops(bias, chunk_rows):
    states, labels, head = make_case(bias)
    found = compute_targets(states, labels, head, kind="expectation", label_log_p=True, chunk_rows=chunk_rows)
    expectation, neg_entropy, log_p = loops(states, labels, head)
    assert found.states is None
    torch.testing.assert_close(found.expectation, torch.tensor(expectation, dtype=torch.float64))
    torch.testing.assert_close(found.neg_entropy, torch.tensor(neg_entropy, dtype=torch.float64))
    torch.testing.assert_close(found.label_log_p, torch.tensor(log_p, dtype=torch.float64))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.03)])
def test_targets_of_a_smaller_type_are_close_and_in_the_type_of_the_maths(dtype, tolerance):
    states, labels, head = make_case(bias=True, dtype=dtype)
    found = compute_targets(states, labels, head, kind="expectation", label_log_p=True)
    expectation, neg_entropy, log_p = loops(states, labels, head)
    assert (found.expectation.dtype, found.neg_entropy.dtype) == (torch.float32, torch.float64)
    for part, expected in (
        (found.expectation, expectation),
        (found.neg_entropy, neg_entropy),
        (found.label_log_p, log_p),
    ):
        torch.testing.assert_close(
            part.double(), torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=2 * tolerance
        )


def test_only_what_was_asked_for_is_kept():
    states, labels, head = make_case(bias=False)
    kept = compute_targets(states, labels, head, kind="states", label_log_p=False)
    assert kept.states is states
    assert (kept.expectation, kept.neg_entropy, kept.label_log_p) == (None, None, None)
    kept = compute_targets(states, labels, head, kind=None, label_log_p=True)
    assert (kept.states, kept.expectation, kept.neg_entropy) == (None, None, None)
    assert kept.n_bytes == 8 * N


def test_no_gradient_and_no_positions_are_no_trouble():
    states, labels, head = make_case(bias=False)
    found = compute_targets(states.requires_grad_(), labels, head, kind="expectation", label_log_p=True)
    assert not found.expectation.requires_grad
    found = compute_targets(states[:0], labels[:0], head, kind="expectation", label_log_p=True)
    assert found.expectation.shape == (0, HIDDEN)
    assert found.neg_entropy.shape == found.label_log_p.shape == (0,)


def test_a_head_that_trains_is_refused():
    states, labels, head = make_case(bias=False)
    head.weight.requires_grad_()
    with pytest.raises(ValueError, match="freeze the head"):
        compute_targets(states, labels, head, kind="states", label_log_p=False)


@pytest.mark.parametrize("kind", ["states", "expectation"])
def test_targets_are_cut_into_copies_and_joined_again(kind):
    states, labels, head = make_case(bias=False)
    whole = compute_targets(states, labels, head, kind=kind, label_log_p=True)
    parts = whole.split([1, 0, 3, 2])
    assert sum(part.n_bytes for part in parts) == whole.n_bytes
    for part in parts:
        assert part.label_log_p.untyped_storage().nbytes() == part.label_log_p.nbytes
    joined = ReferenceTargets.concatenate(parts).to(torch.device("cpu"))
    for name in ("states", "expectation", "neg_entropy", "label_log_p"):
        expected, found = getattr(whole, name), getattr(joined, name)
        assert (expected is None) == (found is None)
        assert expected is None or torch.equal(expected, found)


def test_targets_of_two_kinds_cannot_be_joined():
    states, labels, head = make_case(bias=False)
    kinds = [
        compute_targets(states, labels, head, kind=kind, label_log_p=False)
        for kind in ("states", "expectation")
    ]
    with pytest.raises(ValueError, match="different kinds"):
        ReferenceTargets.concatenate(kinds)
