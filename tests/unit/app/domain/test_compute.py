"""The estimate of a job's computing, and the third of what the base model's training took."""

import pytest

from app.domain.compute import compare_with_third, estimate_flops

COUNTED = {
    "parameters": 1000,
    "adapter_parameters": 10,
    "layers": 2,
    "hidden_size": 8,
    "reference_tokens": 200,
    "reference_squares": 4000,
    "training_tokens": 300,
    "training_squares": 6000,
}


def test_the_formula() -> None:
    reference = 2 * 1000 * 200 + 4 * 16 * 4000
    training = 6 * 1010 * 300 + 12 * 16 * 6000
    assert estimate_flops(COUNTED) == reference + training


def test_what_was_done_twice_counts_twice() -> None:
    once = estimate_flops(COUNTED)
    reference = 2 * 1000 * 200 + 4 * 16 * 4000
    assert estimate_flops(COUNTED, reference_passes=3, steps_done=12, steps=8) == pytest.approx(
        3 * reference + 1.5 * (once - reference)
    )


@pytest.mark.parametrize(
    ("flops", "original", "verdict"),
    [
        (10.0, 1000.0, "below"),
        (166.0, 1000.0, "below"),
        (167.0, 1000.0, "unknown"),
        (333.0, 1000.0, "unknown"),
        (334.0, 1000.0, "above"),
        (10.0, None, "unknown"),
        (None, 1000.0, "unknown"),
        (None, None, "unknown"),
    ],
)
def test_below_is_said_only_where_it_is_known(
    flops: float | None, original: float | None, verdict: str
) -> None:
    assert compare_with_third(flops, original) == verdict
