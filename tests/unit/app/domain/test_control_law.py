"""The control law against its definition, its edges, and what it must refuse."""

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.control_law import compute_alpha, compute_beta, compute_row_beta, compute_s, mean
from app.domain.training_spec import PRESETS, AdaptiveKL, FixedKL

shares = st.floats(0, 1)
LINEAR = {"method": "adaptive_kl", "beta_min": 0.1, "beta_max": 0.9, "schedule": "linear", "threshold": 0.5}


@pytest.mark.parametrize(
    ("log_odds", "expected"),
    [
        (-2.0, 0.0),
        (2.0, 1.0),
        (0.0, 0.5),
        (1.0, 0.75),
        (-9.0, 0.0),
        (9.0, 1.0),
        (math.inf, 1.0),
        (-math.inf, 0.0),
    ],
)
def test_s_is_linear_between_the_points_and_clamped_outside(log_odds: float, expected: float) -> None:
    assert compute_s(log_odds, -2.0, 2.0) == expected


@settings(deadline=None)
@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(-50, 0), st.floats(0.001, 50))
def test_s_never_falls_with_the_log_odds(a: float, b: float, low: float, high: float) -> None:
    assert compute_s(min(a, b), low, high) <= compute_s(max(a, b), low, high)


@pytest.mark.parametrize(
    ("log_odds", "low", "high"),
    [
        (math.nan, -1, 1),
        (0, 1, 1),
        (0, 1, -1),
        (0, math.nan, 1),
        (0, -1, math.nan),
        # inf / inf is no number, and must not become a risk of 0.
        (5, -math.inf, 1),
        (5, -1, math.inf),
        (1e308, -1e308, 1e308),
    ],
)
def test_s_of_nothing_sensible_is_refused(log_odds: float, low: float, high: float) -> None:
    with pytest.raises(ValueError, match=r"."):
        compute_s(log_odds, low, high)


def test_the_linear_schedule() -> None:
    assert compute_beta(0.0, beta_min=0.1, beta_max=0.9) == 0.1
    assert compute_beta(0.5, beta_min=0.1, beta_max=0.9) == 0.5
    assert compute_beta(1.0, beta_min=0.1, beta_max=0.9) == 0.9


@pytest.mark.parametrize(("s", "expected"), [(0.0, 0.1), (0.499999, 0.1), (0.5, 0.9), (1.0, 0.9)])
def test_the_threshold_schedule_jumps_at_the_threshold(s: float, expected: float) -> None:
    assert compute_beta(s, beta_min=0.1, beta_max=0.9, schedule="threshold", threshold=0.5) == expected


@settings(deadline=None)
@given(shares, shares, shares, shares, shares, st.sampled_from(["linear", "threshold"]))
def test_beta_stays_in_range_rises_with_s_and_obeys_the_floor(
    a: float, b: float, end: float, other_end: float, floor: float, schedule: str
) -> None:
    beta_min, beta_max = sorted((end, other_end))
    low, high = (
        compute_beta(s, beta_min=beta_min, beta_max=beta_max, schedule=schedule, floor=floor)
        for s in sorted((a, b))
    )
    assert low <= high
    assert low >= max(floor, beta_min)
    # beta_min + (beta_max - beta_min) may round one bit beyond beta_max, but never beyond 1.
    assert high <= min(1.0, math.nextafter(max(floor, beta_max), 2))
    assert 0.0 <= compute_alpha(high) <= 1.0


@pytest.mark.parametrize("s", [-0.001, 1.001, math.nan])
def test_an_s_outside_its_range_is_refused(s: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        compute_beta(s, beta_min=0.1, beta_max=0.9)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'cosine'"):
        compute_beta(0.5, beta_min=0.1, beta_max=0.9, schedule="cosine")


@settings(deadline=None)
@given(st.lists(shares, min_size=1, max_size=50), st.randoms())
def test_the_mean_is_exact_and_does_not_depend_on_the_order(values: list[float], random: Any) -> None:
    exact = float(sum(map(Fraction, values), Fraction(0)))
    assert mean(values) == exact / len(values)
    shuffled = list(values)
    random.shuffle(shuffled)
    assert mean(shuffled) == mean(values)


@pytest.mark.parametrize(
    ("safety", "s", "floor", "expected"),
    [
        (LINEAR, 0.5, 0.0, 0.5),
        (LINEAR, 0.5, 0.75, 0.75),
        (LINEAR | {"schedule": "threshold"}, 0.5, 0.0, 0.9),
        (LINEAR | {"schedule": "threshold", "threshold": 0.6}, 0.5, 0.0, 0.1),
        ({"method": "fixed_kl", "beta": 0.3}, 1.0, 0.0, 0.3),
        ({"method": "fixed_kl", "beta": 0.3}, None, 0.0, 0.3),
        ({"method": "fixed_kl", "beta": 0.3}, None, 0.5, 0.5),
        ({"method": "none"}, None, 0.0, 0.0),
        ({"method": "none"}, 1.0, 0.2, 0.2),
    ],
)
def test_the_beta_of_a_row_under_each_method(
    safety: dict[str, Any], s: float | None, floor: float, expected: float
) -> None:
    assert compute_row_beta(safety, s, floor) == expected


def test_steering_without_evidence_and_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="needs the s of every row"):
        compute_row_beta(LINEAR, None)
    with pytest.raises(ValueError, match="unknown method 'antidote'"):
        compute_row_beta({"method": "antidote"}, 0.5)


def test_the_wire_form_of_every_preset_can_be_replayed() -> None:
    for safety in PRESETS.values():
        wire = safety.model_dump()
        beta = compute_row_beta(wire, 1.0)
        match safety:
            case AdaptiveKL():
                assert beta == safety.beta_max
            case FixedKL():
                assert beta == safety.beta
            case _:
                assert beta == 0.0
