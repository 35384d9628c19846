"""The loss of arXiv 2602.17546, per example: `L = Σ_i Σ_t [alpha_i·nll + beta_i·KL(reference‖model)] / N`.

Pure functions of tensors. Logits of any float type are raised to float32 first; float64 stays float64. The KL is
over the full vocabulary, at temperature 1. With alpha + beta = 1 the gradient with respect to a position's logits is
`p − (alpha·onehot + beta·p_ref)`, so the loss is least at that mixture.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class LossSums(NamedTuple):
    """A loss and, detached, sums over its tokens that micro-batches can add up."""

    loss: Tensor
    """Scalar, already divided by the step's tokens; call `backward` on it."""
    nll_sum: Tensor
    """Scalar, float64, nats."""
    kl_sum: Tensor
    """Scalar, float64, nats."""
    correct: Tensor
    """Scalar, float64: tokens that the greedy choice gets right."""


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log softmax over the last axis: (…, vocabulary) to the same shape, float32 or float64."""
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Return −log p(label) per token, in nats: (n, vocabulary) and (n,) token ids to (n,)."""
    return _nll(log_probabilities(logits), labels)


def reference_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """Return KL(reference‖model) per token, in nats: twice (n, vocabulary) to (n,). No gradient for the reference."""
    return _kl(log_probabilities(logits), log_probabilities(reference_logits.detach()))


def weighted_loss(
    logits: Tensor,
    labels: Tensor,
    reference_logits: Tensor,
    alpha: Tensor,
    beta: Tensor,
    n_tokens: int,
) -> LossSums:
    """Return the loss of a micro-batch and its sums.

    `logits` and `reference_logits` are (n, vocabulary) at the n loss-bearing positions; `labels`, `alpha` and
    `beta` are (n,), each row's weights repeated for its tokens. `n_tokens` counts the loss-bearing tokens of
    the whole optimiser step, so that the sum over micro-batches does not depend on how the step was cut.
    """
    log_p = log_probabilities(logits)
    token_nll = _nll(log_p, labels)
    token_kl = _kl(log_p, log_probabilities(reference_logits.detach()))
    loss = (alpha * token_nll + beta * token_kl).sum() / n_tokens
    correct = log_p.detach().argmax(dim=-1) == labels
    return LossSums(
        loss,
        token_nll.detach().double().sum(),
        token_kl.detach().double().sum(),
        correct.double().sum(),
    )


def _nll(log_p: Tensor, labels: Tensor) -> Tensor:
    return -log_p.gather(-1, labels[:, None]).squeeze(-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1)
