"""What changes from step to step: the learning rate, and each row's alpha and beta.

The control law itself is `app.domain.control_law`, where an offline verifier finds it too.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from app.domain.control_law import compute_alpha, compute_row_beta
from app.domain.training_spec import Safety


class RowWeights(NamedTuple):
    """The weights of a step's rows, float64, in the order of the step."""

    alpha: tuple[float, ...]
    beta: tuple[float, ...]


def lr_multiplier(
    step: int, *, total_steps: int, warmup_ratio: float, kind: Literal["constant", "linear", "cosine"]
) -> float:
    """Return the factor on the peak learning rate at `step`, counted from 1.

    It rises in equal parts over the first `floor(warmup_ratio·total_steps)` steps, is 1 at the step after them, and
    falls by `kind` towards a 0 that would be reached one step after the last, so that no step is without effect.
    """
    if not 1 <= step <= total_steps:
        raise ValueError(f"step {step} is outside 1 to {total_steps}")
    warmup = int(warmup_ratio * total_steps)
    if step <= warmup:
        return step / (warmup + 1)
    progress = (step - warmup - 1) / (total_steps - warmup)
    if kind == "constant":
        return 1.0
    if kind == "linear":
        return 1.0 - progress
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"unknown learning-rate schedule {kind!r}; known: constant, linear, cosine")


def row_weights(safety: Safety, s: Sequence[float | None], floor: float = 0.0) -> RowWeights:
    """Return alpha and beta of each row from its s by the job's method, never below `floor`.

    Raises ValueError where the method steers by s and a row has none.
    """
    law = safety.model_dump()
    beta = tuple(compute_row_beta(law, value, floor) for value in s)
    return RowWeights(tuple(compute_alpha(value) for value in beta), beta)
