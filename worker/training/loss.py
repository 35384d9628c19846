"""The loss of arXiv 2602.17546, per token: `L = Σ_t [alpha_t·nll_t + beta_t·penalty_t]`.

alpha and beta are final coefficients, already divided by the step's tokens; they need not sum to 1. The penalty is
the distance from the reference: `forward_kl` KL(reference‖model), `reverse_kl` KL(model‖reference), both over the
full vocabulary at temperature 1 in nats, or `l2`, the mean over the hidden units of (h − h_ref)². A `constraint`
c_t > 0 puts the NLL of constrained SFT (arXiv 2406.05946) in the place of the plain one.

`head_loss` is for models whose logits are a frozen linear head on their final states: it computes value and gradient
in one pass over the positions, a chunk at a time, and keeps nothing as wide as the vocabulary. `logits_loss` is the
same mathematics by autograd, for the others.
"""

import math
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from worker.training.head import check_head, chunks, head_logits, math_dtype, softmax_, through_head
from worker.training.targets import ReferenceTargets

Penalty = Literal["forward_kl", "reverse_kl", "l2"]

CONSTRAINT_FLOOR = 1e-3
"""The least weight of a token's NLL under a constraint, as in the code of arXiv 2406.05946."""


class TokenLosses(NamedTuple):
    """A loss and, detached, what it is made of."""

    loss: Tensor
    """Scalar; call `backward` on it."""
    nll: Tensor
    """(n,), nats: −log p(label), with or without a constraint."""
    penalty: Tensor
    """(n,): nats, or squared units of the states for `l2`; NaN where there was no reference to measure it by."""
    correct: Tensor
    """(n,) bool: no token has a higher logit than the label."""


def head_loss(
    states: Tensor,
    head: nn.Module,
    labels: Tensor,
    targets: ReferenceTargets | None,
    alpha: Tensor,
    beta: Tensor,
    *,
    penalty: Penalty = "forward_kl",
    constraint: Tensor | None = None,
    chunk_rows: int | None = None,
) -> TokenLosses:
    """Return the loss of n positions and its parts, with its gradient for `states` and for nothing else.

    `states` is (n, hidden), the final states that predict `labels`, (n,) token ids; `alpha`, `beta` and `constraint`
    are (n,). Without `targets` every beta must be 0: another one makes the loss NaN, as nothing can be checked on a
    device without waiting for it. `forward_kl` takes an expectation before states; the other penalties need states.

    Errors. Products are rounded to the head's type, row maths run in float32, sums of logarithms in float64. Where the
    model is its reference, penalty and gradient vanish: both sides come from the same operations. Elsewhere the
    rounding of the logits rules, and an expectation gives as exact a gradient as states do: with logits up to 16, off
    by 2e-6 of |e| in float32 and by 2e-2 of |e| in bfloat16, as measured against float64. A token's KL is then
    off by about 1e-7 nats from states and 5e-7 from an expectation in float32, 2e-3 and 6e-3 in bfloat16, up or down; it
    is not clamped at 0, so that the errors of many tokens still cancel in their mean.
    """
    linear = check_head(head)
    needs_gradient = states.requires_grad and torch.is_grad_enabled()
    with torch.no_grad():
        dtype = math_dtype(states.dtype)
        positions = _Positions(
            states,
            labels,
            alpha.to(dtype),
            beta.to(dtype),
            constraint,
            *_choose_targets(targets, penalty, constraint),
        )
        fit, token_nll, token_penalty = states.new_empty((3, len(labels)), dtype=dtype)
        correct = torch.empty_like(labels, dtype=torch.bool)
        gradient = torch.empty_like(states) if needs_gradient else None
        for part in chunks(len(labels), linear, chunk_rows):
            fit[part], token_nll[part], token_penalty[part], correct[part] = _run_chunk(
                positions.cut(part), linear, penalty, None if gradient is None else gradient[part]
            )
        loss = _weigh(fit, token_penalty, alpha, beta)
    if gradient is not None:
        loss = _attach_gradient(states, loss, gradient)
    return TokenLosses(loss, token_nll, token_penalty, correct)


def logits_loss(
    logits: Tensor,
    labels: Tensor,
    reference_logits: Tensor | None,
    alpha: Tensor,
    beta: Tensor,
    *,
    penalty: Penalty = "forward_kl",
    constraint: Tensor | None = None,
    states: Tensor | None = None,
    reference_states: Tensor | None = None,
) -> TokenLosses:
    """Return what `head_loss` returns, by autograd on logits: for models whose logits are not a head's alone.

    `logits` and `reference_logits` are (n, vocabulary); a constraint takes the label's log-probability from the
    latter, and `l2` needs `states` and `reference_states`, (n, hidden). The reference gets no gradient.
    """
    log_p = log_probabilities(logits)
    log_q = None if reference_logits is None else log_probabilities(reference_logits.detach())
    token_nll = nll(log_p, labels)
    fit = token_nll
    if constraint is not None:
        if log_q is None:
            raise ValueError(
                "a constraint needs the reference's log-probability of the labels; pass reference_logits"
            )
        value, weight = _constrain(token_nll.detach().double(), -nll(log_q, labels).double(), constraint)
        # The value is the paper's; the gradient is the weight's, floor included.
        fit = value.to(log_p.dtype) + weight.to(log_p.dtype) * (token_nll - token_nll.detach())
    if penalty == "l2":
        if (states is None) != (reference_states is None):
            raise ValueError("l2 needs states and reference_states, or neither where no beta is above 0")
        token_penalty = (
            token_nll.new_full(token_nll.shape, math.nan)
            if states is None or reference_states is None
            else _gap(states, reference_states.detach()).square().mean(1)
        )
    elif log_q is None:
        token_penalty = token_nll.new_full(token_nll.shape, math.nan)
    else:
        token_penalty = kl(log_q, log_p) if penalty == "forward_kl" else kl(log_p, log_q)
    correct = log_p.detach().gather(1, labels[:, None])[:, 0] == log_p.detach().amax(1)
    loss = _weigh(fit, token_penalty, alpha, beta)
    return TokenLosses(loss, token_nll.detach(), token_penalty.detach(), correct)


@torch.no_grad()
def head_nll(
    states: Tensor, head: nn.Module, labels: Tensor, *, chunk_rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return −log p(label) in nats and whether no token has a higher logit, each (n,); no gradient."""
    nothing = states.new_zeros(len(labels))
    found = head_loss(states, head, labels, None, nothing, nothing, chunk_rows=chunk_rows)
    return found.nll, found.correct


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log softmax over the last axis: (…, vocabulary) to the same shape, float32 or float64."""
    return torch.log_softmax(logits.to(math_dtype(logits.dtype)), dim=-1)


def nll(log_p: Tensor, labels: Tensor) -> Tensor:
    """Return −log p(label) per token, in nats: (n, vocabulary) log-probabilities and (n,) token ids to (n,)."""
    return -log_p.gather(-1, labels[:, None]).squeeze(-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p‖q) per token, in nats: twice (n, vocabulary) log-probabilities to (n,)."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


class _Positions(NamedTuple):
    """What is known at each of n positions; what is None is not needed."""

    states: Tensor
    labels: Tensor
    alpha: Tensor
    beta: Tensor
    constraint: Tensor | None
    reference_states: Tensor | None
    expectation: Tensor | None
    neg_entropy: Tensor | None
    label_log_p: Tensor | None

    def cut(self, part: slice) -> "_Positions":
        return _Positions._make(None if of_all is None else of_all[part] for of_all in self)


class _AttachGradient(torch.autograd.Function):
    """A scalar whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None


def _attach_gradient(states: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
    return cast(Tensor, _AttachGradient.apply(states, loss, gradient))  # type: ignore[no-untyped-call]


def _choose_targets(
    targets: ReferenceTargets | None, penalty: Penalty, constraint: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the states or the expectation with its constant, and the labels' log-probabilities, that are needed."""
    targets = targets or ReferenceTargets()
    if constraint is not None and targets.label_log_p is None:
        raise ValueError("a constraint needs the reference's label_log_p; ask compute_targets for it")
    label_log_p = None if constraint is None else targets.label_log_p
    if penalty == "forward_kl" and targets.expectation is not None:
        return None, targets.expectation, targets.neg_entropy, label_log_p
    if targets.states is None and targets.expectation is not None:
        raise ValueError(
            f"{penalty} needs the reference's states, not an expectation; compute targets of that kind"
        )
    return targets.states, None, None, label_log_p


def _run_chunk(
    at: _Positions, head: nn.Linear, penalty: Penalty, gradient: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the fit, NLL, penalty and correctness of c positions, (c,) each, and fill `gradient`, (c, hidden).

    With E = exp(z − max z) and its sum s, the softmax p = E/s is never written: s divides the (c, hidden) image E·W
    instead. The label's −1 goes into E before the image is taken, so that the p_y − 1 of a well-fitted token is not
    the difference of two images.
    """
    z = head_logits(at.states, head)
    z_label = z.gather(1, at.labels[:, None])[:, 0]
    top = z.amax(1)
    distribution_states = None if penalty == "l2" else at.reference_states
    if distribution_states is not None:
        z_ref = head_logits(distribution_states, head)
        difference = z_ref - z
        reference = softmax_(z_ref, z_ref.amax(1))
    own = softmax_(z, top)

    token_nll = own.log_sum_exp - z_label
    fit, alpha, beta = token_nll, at.alpha, at.beta
    if at.constraint is not None and at.label_log_p is not None:
        fit, weight = _constrain(token_nll, at.label_log_p, at.constraint)
        alpha = alpha * weight.to(alpha.dtype)

    if at.expectation is not None and at.neg_entropy is not None:
        dot = torch.linalg.vecdot(at.states.double(), at.expectation.double())
        token_penalty = at.neg_entropy + own.log_sum_exp - dot
    elif distribution_states is not None:
        measure = reference if penalty == "forward_kl" else own
        products = difference.mul_(measure.weights)
        mean = products.sum(1) / measure.total
        forward = mean + own.log_sum_exp - reference.log_sum_exp
        token_penalty = forward if penalty == "forward_kl" else -forward
    elif at.reference_states is not None:
        gap = _gap(at.states, at.reference_states)
        token_penalty = gap.square().mean(1)
    else:
        token_penalty = torch.full_like(token_nll, math.nan)
    if gradient is None:
        return fit, token_nll, token_penalty, z_label == top

    # Shares of alpha + beta, not the two themselves, so that equal distributions cancel exactly where alpha is 0.
    of_logits = at.expectation is not None or distribution_states is not None
    scale = alpha + beta if of_logits else alpha
    divisor = scale.where(scale > 0, 1)
    own_share, reference_share = (alpha / divisor)[:, None], (beta / divisor)[:, None]
    slope, total = own.weights, own.total[:, None]
    if distribution_states is not None and penalty == "forward_kl":
        slope.addcmul_(reference.weights, reference_share * total / reference.total[:, None], value=-1)
    elif distribution_states is not None:
        slope.mul_(own_share + reference_share * mean[:, None])
        slope.addcmul_(products, reference_share, value=-1)
    slope.scatter_add_(1, at.labels[:, None], -own_share * total)
    image = through_head(slope, head).div_(total)
    if at.expectation is not None:
        image.addcmul_(at.expectation, reference_share, value=-1)
    image.mul_(scale[:, None])
    if penalty == "l2" and at.reference_states is not None:
        image.addcmul_(gap, beta[:, None], value=2 / gap.shape[1])
    gradient.copy_(image)
    return fit, token_nll, token_penalty, z_label == top


def _constrain(token_nll: Tensor, reference_log_p: Tensor, constraint: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value and the weight of a constrained NLL, (n,) each; where the constraint is 0, the NLL and 1.

    With Δ = log p(label) − log p_ref(label) the value is −(2/c)·log σ(cΔ) and its gradient w·∇nll, w = 2σ(−cΔ):
    arXiv 2406.05946, with the floor under w of the authors' code.
    """
    strength = constraint.double()
    advantage = -token_nll - reference_log_p
    value = -2 / strength.where(strength > 0, 1) * torch.nn.functional.logsigmoid(strength * advantage)
    weight = (2 * torch.sigmoid(-strength * advantage)).clamp_min(CONSTRAINT_FLOOR)
    plain = strength == 0
    return value.where(~plain, token_nll), weight.where(~plain, 1)


def _gap(states: Tensor, reference_states: Tensor) -> Tensor:
    dtype = math_dtype(states.dtype)
    return states.to(dtype) - reference_states.to(dtype)


def _weigh(fit: Tensor, penalty: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    # A penalty that was not measured is NaN, which a beta of 0 must not spread and any other beta must.
    weighted = (beta * penalty).where(beta != 0, 0)
    return (alpha * fit + weighted).sum().to(fit.dtype)
