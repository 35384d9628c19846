"""The output head over many positions, a chunk of them at a time.

A head is a frozen `nn.Linear` from (n, hidden) final states to (n, vocabulary) logits. Products run in the head's own
type; everything after them runs in float32, or in float64 where the head is float64.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

MIN_CHUNK_ROWS = 256
"""With fewer positions, reading the head's weight takes longer than multiplying by it."""
CPU_CHUNK_LOGITS = 2**22
"""Logits of a chunk on a CPU, 16 MiB of them: 1,024 positions of a vocabulary of 4,096."""
DEVICE_CHUNK_LOGITS = 2**27
"""Logits of a chunk elsewhere, half a GiB of them: 1,024 positions of a vocabulary of 131,072."""


class Softmax(NamedTuple):
    """A softmax that has not been divided yet, (c, vocabulary), and what is left to know of its rows."""

    weights: Tensor
    """(c, vocabulary): exp(z − max z), at most 1."""
    total: Tensor
    """(c,): the sum of a row's weights, from 1 to the vocabulary."""
    log_sum_exp: Tensor
    """(c,) float64, nats: float32 would round a value of 16 by 1e-6, which is all of a small KL."""


def check_head(head: nn.Module) -> nn.Linear:
    """Return the head where it is a frozen linear layer and nothing more; raise TypeError or ValueError otherwise."""
    # A subclass may do anything in its forward, and the products here would not know.
    if type(head) is not nn.Linear:
        raise TypeError(
            f"the head is a {type(head).__name__}, not a linear layer; use logits_loss on its logits"
        )
    if any(parameter.requires_grad for parameter in head.parameters()):
        raise ValueError(
            "the head's parameters require a gradient and none is computed for them; freeze the head"
        )
    return head


def math_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type that a tensor's row maths run in: float64 stays, everything else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def chunks(n: int, head: nn.Linear, chunk_rows: int | None = None) -> Iterator[slice]:
    """Cut n positions into runs of `chunk_rows`, by default what suits the head's vocabulary and device."""
    if chunk_rows is None:
        logits = CPU_CHUNK_LOGITS if head.weight.device.type == "cpu" else DEVICE_CHUNK_LOGITS
        chunk_rows = max(MIN_CHUNK_ROWS, logits // head.out_features)
    for start in range(0, n, chunk_rows):
        yield slice(start, min(start + chunk_rows, n))


def head_logits(states: Tensor, head: nn.Linear) -> Tensor:
    """Return the logits of a chunk, (c, hidden) to (c, vocabulary), in the type of the row maths."""
    return torch.nn.functional.linear(states, head.weight, head.bias).to(math_dtype(states.dtype))


def through_head(weights: Tensor, head: nn.Linear) -> Tensor:
    """Return `weights` times the head's weight, (c, vocabulary) to (c, hidden), in the type of the row maths."""
    return (weights.to(head.weight.dtype) @ head.weight).to(weights.dtype)


def softmax_(z: Tensor, top: Tensor) -> Softmax:
    """Turn logits into the weights of their softmax in place; `top` is each row's highest logit.

    On 131,072 logits in float32 the sum here is right to 2e-7, that of torch's own softmax to 9e-6, as measured.
    """
    weights = z.sub_(top[:, None]).exp_()
    total = weights.sum(1)
    return Softmax(weights, total, top.double() + total.double().log())
