"""The learning rate from step to step. How alpha and beta change is `control_law`. Standard library only."""

import math
from typing import Literal


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
