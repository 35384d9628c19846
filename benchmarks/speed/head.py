"""The output head alone: our fused loss beside plain torch on the same states, forward and backward."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.speed.shapes import DATA_SEED, Shape
from worker.training.loss import head_loss
from worker.training.targets import ReferenceTargets, compute_targets

BETA = 0.5


class HeadCase(NamedTuple):
    """What a head's loss is computed from."""

    states: Tensor
    """(n, hidden)."""
    head: nn.Linear
    labels: Tensor
    reference_states: Tensor
    alpha: Tensor
    beta: Tensor


def build_case(shape: Shape, positions: int) -> HeadCase:
    """Return random states of `positions` loss-bearing tokens and a frozen head."""
    generator = torch.Generator().manual_seed(DATA_SEED)
    head = nn.Linear(shape.hidden, shape.vocabulary, bias=False).requires_grad_(False)
    head.weight.copy_(0.02 * torch.randn(head.weight.shape, generator=generator))
    states = torch.randn(positions, shape.hidden, generator=generator)
    return HeadCase(
        states.requires_grad_(),
        head,
        torch.randint(shape.vocabulary, (positions,), generator=generator),
        states.detach() + 0.1 * torch.randn(states.shape, generator=generator),
        torch.full((positions,), (1 - BETA) / positions, dtype=torch.float64),
        torch.full((positions,), BETA / positions, dtype=torch.float64),
    )


def head_contenders(case: HeadCase) -> dict[str, Callable[[], Tensor]]:
    """Return ways to compute a loss of the case, each as a function of nothing that returns it."""
    states, head, labels, reference_states, alpha, beta = case
    expectation, kept_states = (
        compute_targets(reference_states, labels, head, kind=kind, label_log_p=False)
        for kind in ("expectation", "states")
    )

    def ours(targets: ReferenceTargets | None) -> Tensor:
        if targets is None:
            return head_loss(states, head, labels, None, alpha + beta, torch.zeros_like(beta)).loss
        return head_loss(states, head, labels, targets, alpha, beta).loss

    def torch_nll() -> Tensor:
        return nn.functional.cross_entropy(head(states), labels)

    def torch_kl() -> Tensor:
        log_p = torch.log_softmax(head(states), dim=-1)
        log_q = torch.log_softmax(head(reference_states), dim=-1)
        token_nll = -log_p.gather(1, labels[:, None])[:, 0]
        token_kl = (log_q.exp() * (log_q - log_p)).sum(1)
        return ((1 - BETA) * token_nll + BETA * token_kl).mean()

    return {
        "nll": lambda: ours(None),
        "kl": lambda: ours(expectation),
        "kl_states": lambda: ours(kept_states),
        "torch_nll": torch_nll,
        "torch_kl": torch_kl,
    }


def loss_and_gradient(case: HeadCase, loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Return the loss and its gradient for the states."""
    case.states.grad = None
    value = loss()
    torch.autograd.backward(value)
    gradient = case.states.grad
    if gradient is None:
        raise RuntimeError("the loss gave its states no gradient")
    return value.item(), gradient


def time_head(case: HeadCase, loss: Callable[[], Tensor]) -> float:
    """Return the seconds of one forward and backward."""
    began = time.perf_counter()
    loss_and_gradient(case, loss)
    return time.perf_counter() - began
