"""What a server's numbers say of the model that it serves."""

from typing import Any

import pytest

from app.domain.canary import Canary, compare_canary, distance, parse_canary

CANARY = Canary((1, 2), (3, 4), tuned=(-0.5, -1.5), base=(-3.0, -2.5))


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ((-0.5, -1.5), "tuned"),
        ((-0.54, -1.46), "tuned"),
        ((-3.0, -2.5), "base"),
        ((-2.97, -2.53), "base"),
        ((-0.7, -1.5), "neither"),
        ((-1.0, -1.0), "neither"),
        ((float("nan"), -1.5), "neither"),
    ],
)
def test_the_nearer_one_within_the_tolerance(found: tuple[float, ...], verdict: str) -> None:
    assert compare_canary(CANARY, found).verdict == verdict


def test_sums_that_cancel_do_not_deceive() -> None:
    swapped = (-1.5, -0.5)
    assert sum(swapped) == sum(CANARY.tuned)
    assert compare_canary(CANARY, swapped).verdict == "neither"


@pytest.mark.parametrize(("apart", "verdict"), [(0.04, "too_near"), (0.099, "too_near"), (0.11, "tuned")])
def test_two_models_that_a_server_in_low_precision_could_confuse(apart: float, verdict: str) -> None:
    near = Canary((1,), (2,), tuned=(-1.0,), base=(-1.0 - apart,))
    answer = compare_canary(near, [-1.0])
    assert answer.verdict == verdict
    assert answer.apart == pytest.approx(apart)
    assert compare_canary(near, [-5.0]).verdict == "neither"


def test_a_wider_tolerance_needs_them_further_apart() -> None:
    assert compare_canary(CANARY, (-0.9, -1.9), tolerance=0.5).verdict == "tuned"
    assert compare_canary(CANARY, (-0.9, -1.9), tolerance=1.0).verdict == "too_near"


def test_a_missing_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 log-probabilities for 2 tokens"):
        compare_canary(CANARY, [-0.5])


def test_it_survives_its_manifest() -> None:
    assert parse_canary(CANARY.to_body()) == CANARY
    assert distance(CANARY.tuned, CANARY.base) == pytest.approx(1.75)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"more": 1}, "and no other"),
        ({"prompt_ids": []}, "prompt_ids is no list"),
        ({"continuation_ids": [3, True]}, "continuation_ids is no list"),
        ({"tuned": [-1.0, "NaN"]}, "tuned is no list"),
        ({"base": [-1.0]}, "1 numbers for 2 tokens"),
    ],
)
def test_a_manifest_that_says_anything_else_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_canary(CANARY.to_body() | change)
