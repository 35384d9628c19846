"""How much computing a job took, from what its record counts, and what share of the base model's own training that is.

    training    6 · (N + A) · T  +  12 · L · H · S        reference    2 · N · T  +  4 · L · H · S

N and A are the parameters of base and adapter, L and H its layers and hidden size, T the tokens that go through the model and S
the sum of the squares of the lengths of their rows, for attention. Of these passes it is an upper estimate: the backward pass
through frozen weights needs 4 N, not 6 N. Not in it are the run-level monitor's passes and those over validation data,
evaluations, a live judge's answers and the critic, hence MARGIN; and the generations before, each of which has its own.
Standard library only.
"""

from collections.abc import Mapping
from typing import Literal

MARGIN = 2.0
"""The share is below a third only where it is even with so many times the estimate."""

Verdict = Literal["above", "below", "unknown"]


def estimate_flops(
    counted: Mapping[str, int], *, reference_passes: int = 1, steps_done: int = 1, steps: int = 1
) -> float:
    """Return the floating-point operations of a job whose record counts `counted`.

    Every attempt makes a reference pass of its own; of `steps_done` steps those that were lost in a crash were done for nothing.
    """
    attention = counted["layers"] * counted["hidden_size"]
    training = (
        6.0 * (counted["parameters"] + counted["adapter_parameters"]) * counted["training_tokens"]
        + 12.0 * attention * counted["training_squares"]
    )
    reference = (
        2.0 * counted["parameters"] * counted["reference_tokens"]
        + 4.0 * attention * counted["reference_squares"]
    )
    return reference * reference_passes + training * steps_done / max(steps, 1)


def compare_with_third(flops: float | None, original_flops: float | None) -> Verdict:
    """Say whether a modification took more than a third of the base model's own training compute.

    `unknown` where either number is missing, and where they are too near to say.
    """
    if flops is None or original_flops is None:
        return "unknown"
    third = original_flops / 3
    if flops > third:
        return "above"
    return "below" if flops * MARGIN < third else "unknown"
