"""The control law against its definition, its edges, and what it must refuse."""

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.control_law import (
    MIN_THRESHOLD,
    REPLAY_BETA,
    UNSTEERED,
    MonitorState,
    combine_s,
    compute_alpha,
    compute_anchor_weight,
    compute_beta,
    compute_judged_s,
    compute_monitor_state,
    compute_row_beta,
    compute_row_betas,
    compute_s,
    compute_threshold,
    compute_treatment,
    fitted_ids,
    is_protected,
    mean,
    measure_row,
    summarise_step,
)
from app.domain.safety_spec import PRESETS, AdaptiveKL, CombinedCritic, FixedKL

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
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        compute_row_beta({"method": "magic"}, 0.5)
    for safety in (REPLAY, FILTER, BATCH):
        with pytest.raises(ValueError, match="needs the s of every row"):
            compute_row_betas(safety, [0.5, None])
            compute_treatment(safety, None)


def test_the_wire_form_of_every_preset_can_be_replayed() -> None:
    for safety in PRESETS.values():
        wire = safety.model_dump() | {"threshold": 0.6}
        (low, high), _ = compute_row_betas(wire, [0.0, 0.5])
        match safety:
            case AdaptiveKL(scope="batch"):
                assert low == high == safety.beta_min + (safety.beta_max - safety.beta_min) * 0.25
            case AdaptiveKL():
                assert low == safety.beta_min
                assert high == safety.beta_min + (safety.beta_max - safety.beta_min) * 0.5
            case FixedKL():
                assert low == high == safety.beta
            case _:
                assert low == high == 0.0


# --- the probability's scale and the automatic threshold --------------------------------------------------


@pytest.mark.parametrize("log_odds", [-800.0, -30.0, -1.5, 0.0, 1e-9, 2.0, 40.0, 800.0, math.inf, -math.inf])
def test_s_as_a_probability_is_the_logistic_function(log_odds: float) -> None:
    # The logistic function by another formula.
    expected = 0.5 * (1.0 + math.tanh(log_odds / 2))
    found = compute_s(log_odds, -2.0, 2.0, "probability")
    assert found == pytest.approx(expected, abs=1e-15)
    assert 0.0 <= found <= 1.0


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown s_scale 'logit'"):
        compute_s(0.0, -1.0, 1.0, "logit")


ACTIVATION, JUDGE, CONSTANT = {"type": "activation"}, {"type": "judge"}, {"type": "constant", "s": 0.9}


@pytest.mark.parametrize(
    ("critic", "activation", "expected"),
    [
        (ACTIVATION, 0.7, 0.7),
        # A threshold at the critic's lower point must not make every row risky.
        (ACTIVATION, 0.0, MIN_THRESHOLD),
        (JUDGE, None, 0.5),
        (CONSTANT, 0.7, 0.5),
        ({"type": "combined", "rule": "max", "critics": [ACTIVATION, JUDGE]}, 0.7, 0.5),
        ({"type": "combined", "rule": "max", "critics": [ACTIVATION, JUDGE]}, 0.2, 0.2),
        (
            {"type": "combined", "rule": "weighted", "weights": [0.25, 0.75], "critics": [ACTIVATION, JUDGE]},
            0.7,
            0.25 * 0.7 + 0.75 * 0.5,
        ),
    ],
)
def test_the_automatic_threshold_is_the_critics(
    critic: dict[str, Any], activation: float | None, expected: float
) -> None:
    assert compute_threshold(critic, {None: activation} if activation is not None else {}) == expected


def test_a_threshold_that_nobody_knows_is_refused() -> None:
    for critic in (ACTIVATION, {"type": "combined", "rule": "max", "critics": [JUDGE, ACTIVATION]}):
        with pytest.raises(ValueError, match="no threshold of its own"):
            compute_threshold(critic, {})
    with pytest.raises(ValueError, match="unknown critic 'oracle'"):
        compute_threshold({"type": "oracle"}, {})


@settings(deadline=None)
@given(st.lists(shares, min_size=2, max_size=4), st.data())
def test_combined_critics_stay_between_their_parts(parts: list[float], data: st.DataObject) -> None:
    raw = data.draw(st.lists(st.floats(0.01, 1), min_size=len(parts), max_size=len(parts)))
    weights = [each / math.fsum(raw) for each in raw]
    critics = [{"type": "constant", "s": s} for s in parts]
    highest = CombinedCritic.model_validate({"critics": critics, "rule": "max"})
    weighted = CombinedCritic.model_validate({"critics": critics, "rule": "weighted", "weights": weights})
    assert combine_s(highest.model_dump(), parts) == max(parts)
    expected = float(sum(Fraction(w) * Fraction(s) for w, s in zip(weights, parts, strict=True)))
    assert combine_s(weighted.model_dump(), parts) == pytest.approx(expected, abs=1e-15)
    assert combine_s(weighted.model_dump(), parts) <= 1.0
    with pytest.raises(ValueError, match=f"1 parts for {len(parts)} critics"):
        combine_s(weighted.model_dump(), parts[:1])


# --- judges -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([[1]], (0.0, True)),
        ([[5]], (1.0, True)),
        ([[1], [4]], (0.75, True)),  # The worst piece counts.
        ([[1, 2, 5]], (0.25, True)),  # The middle vote.
        ([[2, 4]], (0.75, True)),  # Of two in the middle the higher one.
        ([[1, 1, None]], (0.0, True)),  # A missing vote counts as 5, and is outvoted.
        ([[1, 3, None]], (0.5, True)),
        ([[2, None]], (0.25, False)),  # Half are missing: something else must fill in.
        ([[None]], (0.0, False)),
        ([], (0.0, False)),
    ],
)
def test_the_s_of_a_judges_votes(votes: list[list[int | None]], expected: tuple[float, bool]) -> None:
    assert compute_judged_s(votes) == expected


@given(st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=1, max_size=9), st.data())
def test_losing_a_vote_never_lowers_what_stands_alone(piece: list[int | None], data: Any) -> None:
    place = data.draw(st.integers(0, len(piece) - 1))
    lost = [*piece[:place], None, *piece[place + 1 :]]
    (before, _), (after, stands) = compute_judged_s((tuple(piece),)), compute_judged_s((tuple(lost),))
    assert after >= before or not stands


@given(st.lists(st.integers(1, 5), min_size=1, max_size=9))
def test_half_of_the_votes_or_more_say_no_more_than_the_score(piece: list[int]) -> None:
    s, _ = compute_judged_s((tuple(piece),))
    score = 4 * s + 1
    assert 2 * sum(vote <= score for vote in piece) >= len(piece)
    assert 2 * sum(vote >= score for vote in piece) >= len(piece)


PARTS = {"type": "combined", "rule": "max", "critics": [JUDGE, ACTIVATION]}
WEIGHTED = PARTS | {"rule": "weighted", "weights": [0.5, 0.5]}


@pytest.mark.parametrize(
    ("critic", "activation", "votes", "expected"),
    [
        (CONSTANT, None, [], ("constant", 0.9)),
        (ACTIVATION, 0.3, [], ("ok", 0.3)),
        (JUDGE, None, [[3]], ("judged", 0.5)),
        (JUDGE, 0.3, [[3, None]], ("fallback", 0.5)),
        (JUDGE, 0.7, [[None]], ("fallback", 0.7)),
        (PARTS, 0.3, [[3]], ("judged", 0.5)),
        (PARTS, 0.7, [[3]], ("judged", 0.7)),
        (WEIGHTED, 0.25, [[4]], ("judged", 0.5)),
        (WEIGHTED, 0.25, [[None]], ("fallback", 0.25)),
        (PARTS | {"critics": [CONSTANT, ACTIVATION]}, 0.3, [], ("ok", 0.9)),
        (PARTS | {"critics": [CONSTANT, CONSTANT]}, None, [], ("constant", 0.9)),
    ],
)
def test_what_a_critic_makes_of_what_its_parts_read(
    critic: dict[str, Any],
    activation: float | None,
    votes: list[list[int | None]],
    expected: tuple[str, float],
) -> None:
    assert measure_row(critic, {None: activation} if activation is not None else {}, votes) == expected


@pytest.mark.parametrize(
    ("critic", "votes"), [(ACTIVATION, []), (JUDGE, [[None]]), (PARTS, [[3]]), ({"type": "oracle"}, [])]
)
def test_what_a_part_could_not_measure_nobody_has(
    critic: dict[str, Any], votes: list[list[int | None]]
) -> None:
    with pytest.raises(ValueError, match="has not measured this row"):
        measure_row(critic, {}, votes)


# --- several activation critics ---------------------------------------------------------------------------

HARM, BIAS, UNTRUTH = ({"type": "activation", "id": name} for name in ("harm", "bias", "untruth"))
ROWS_READ = [
    {"harm": 0.9, "bias": 0.1, "untruth": 0.0},
    {"harm": 0.05, "bias": 0.8, "untruth": 0.3},
    {"harm": 0.0, "bias": 0.0, "untruth": 1.0},
    {"harm": 1.0, "bias": 1.0, "untruth": 1.0},
]
WEIGHTS = [0.5, 0.3, 0.2]
BY_MAX = {"type": "combined", "rule": "max", "critics": [HARM, BIAS, UNTRUTH]}
BY_WEIGHT = BY_MAX | {"rule": "weighted", "weights": WEIGHTS}


def test_each_part_counts_by_its_own_reading() -> None:
    for readings in ROWS_READ:
        # Computed anew, exactly: the highest of three numbers, and a sum of products of fractions.
        highest = sorted(readings.values())[-1]
        exact = sum(
            Fraction(weight) * Fraction(readings[name])
            for name, weight in zip(("harm", "bias", "untruth"), WEIGHTS, strict=True)
        )
        assert measure_row(BY_MAX, readings, []) == ("ok", highest)
        status, s = measure_row(BY_WEIGHT, readings, [])
        assert (status, s) == ("ok", pytest.approx(float(exact), abs=1e-15))
    # A weight is of its own part, not of the part with the highest reading.
    by_hand = [0.48, 0.325, 0.2, 1.0]
    assert [measure_row(BY_WEIGHT, each, [])[1] for each in ROWS_READ] == pytest.approx(by_hand, abs=1e-15)


@pytest.mark.parametrize("critic", [BY_MAX, BY_WEIGHT], ids=["max", "weighted"])
@pytest.mark.parametrize("missing", ["harm", "bias", "untruth"])
def test_a_part_that_did_not_read_is_never_a_zero(critic: dict[str, Any], missing: str) -> None:
    readings = {name: s for name, s in ROWS_READ[0].items() if name != missing}
    with pytest.raises(ValueError, match="has not measured this row"):
        measure_row(critic, readings, [])


def test_the_threshold_of_several_follows_the_rule() -> None:
    thresholds = {"harm": 0.7, "bias": 0.4, "untruth": 0.6}
    assert compute_threshold(BY_MAX, thresholds) == 0.4
    assert compute_threshold(BY_WEIGHT, thresholds) == pytest.approx(0.35 + 0.12 + 0.12, abs=1e-15)
    with pytest.raises(ValueError, match="no threshold of its own"):
        compute_threshold(BY_MAX, {"harm": 0.7, "bias": 0.4})


def test_a_judge_falls_back_on_the_critic_that_it_names() -> None:
    judge = {"type": "judge", "fallback": "bias"}
    assert measure_row(judge, {"harm": 0.9, "bias": 0.25}, [[None]]) == ("fallback", 0.25)
    beside = {"type": "combined", "rule": "max", "critics": [HARM, judge]}
    assert measure_row(beside, {"harm": 0.5, "bias": 0.75}, [[None]]) == ("fallback", 0.75)
    assert measure_row(beside, {"harm": 0.5}, [[2]]) == ("judged", 0.5)
    with pytest.raises(ValueError, match="nothing fills in"):
        measure_row(beside, {"harm": 0.5}, [[None]])


def test_the_fitted_critics_that_a_critic_names() -> None:
    judge = {"type": "judge", "fallback": "bias"}
    assert fitted_ids(None) == fitted_ids(CONSTANT) == ()
    assert fitted_ids(HARM) == ("harm",)
    assert (fitted_ids(judge), fitted_ids(judge | {"fallback": None})) == (("bias",), ())
    parts = [judge, CONSTANT, HARM, BIAS, UNTRUTH]
    assert fitted_ids(BY_MAX | {"critics": parts}) == ("bias", "harm", "untruth")


# --- treatments -------------------------------------------------------------------------------------------

REPLAY = LINEAR | {"replay": True, "scope": "example"}
FILTER = {"method": "filter", "threshold": 0.5}
BATCH = LINEAR | {"replay": False, "scope": "batch", "ema_decay": 0.75}


@pytest.mark.parametrize(
    ("safety", "s", "expected"),
    [
        (REPLAY, 0.499, "own"),
        (REPLAY, 0.5, "replay"),
        (REPLAY | {"replay": False}, 1.0, "own"),
        (LINEAR, 1.0, "own"),
        (FILTER, 0.499, "own"),
        (FILTER, 0.5, "drop"),
        ({"method": "none"}, 1.0, "own"),
        ({"method": "fixed_kl", "beta": 0.5}, None, "own"),
        *(({"method": name}, None, "own") for name in UNSTEERED if name != "filter"),
    ],
)
def test_what_becomes_of_a_row(safety: dict[str, Any], s: float | None, expected: str) -> None:
    assert compute_treatment(safety, s) == expected


def test_a_replayed_row_is_half_nll_half_kl_whatever_its_risk() -> None:
    betas, smoothed = compute_row_betas(REPLAY, [0.25, 0.5, 1.0])
    assert betas == (0.1 + (0.9 - 0.1) * 0.25, REPLAY_BETA, REPLAY_BETA)
    assert smoothed is None
    assert compute_row_betas(REPLAY, [0.5], floor=0.75) == ((0.75,), None)


@pytest.mark.parametrize("method", UNSTEERED)
def test_methods_without_a_penalty_have_the_floors_beta(method: str) -> None:
    safety = {"method": method, "threshold": 0.5, "beta": 0.1}
    assert compute_row_betas(safety, [0.25, 0.25]) == ((0.0, 0.0), None)
    assert compute_row_betas(safety, [0.25], floor=0.1) == ((0.1,), None)


def test_a_batch_has_one_beta_from_its_smoothed_mean() -> None:
    smoothed, expected = None, None
    for batch in ([0.0, 1.0], [1.0, 1.0], [0.0, 0.0, 0.0]):
        s = sum(batch) / len(batch)
        expected = s if expected is None else 0.75 * expected + 0.25 * s
        betas, smoothed = compute_row_betas(BATCH, batch, 0.0, smoothed)
        assert smoothed == expected
        assert betas == (0.1 + (0.9 - 0.1) * expected,) * len(batch)
    unsmoothed, after = compute_row_betas(BATCH | {"ema_decay": 0.0}, [0.5], 0.0, 1.0)
    assert (unsmoothed, after) == ((0.5,), 0.5)
    assert compute_row_betas(BATCH, [0.0], 0.25, 0.0) == ((0.25,), 0.0)


def test_a_step_says_what_its_rows_were_weighted_by() -> None:
    numbers = summarise_step([0.25, 0.75], (0.125, 0.5))
    assert numbers == (0.5, 0.75, 0.6875, 0.5, 0.3125, 0.5)
    # A row that was not measured is no risk of 0.
    assert summarise_step([0.25, None], (0.0, 0.0))[:2] == (None, None)
    assert summarise_step([], ()) == (None, None, 1.0, 1.0, 0.0, 0.0)


# --- the run-level monitor --------------------------------------------------------------------------------


def monitor(action: str, kls: list[float]) -> list[tuple[float, float]]:
    """Return the states after each measurement, from the beginning."""
    state, states = MonitorState(), []
    for kl in kls:
        state = compute_monitor_state({"limit": 0.1, "action": action, "floor": 0.3}, kl, state)
        states.append(tuple(state))
    return states


def test_the_monitor_acts_beyond_its_limit_and_takes_it_back() -> None:
    kls = [0.1, 0.11, math.nan, math.inf, 9.0, 0.1, 0.0, 0.0, 0.0]
    assert monitor("warn", kls) == monitor("pause", kls) == [(0.0, 1.0)] * 9
    factors = [1.0, 2.0, 4.0, 8.0, 8.0, 4.0, 2.0, 1.0, 1.0]
    assert monitor("anchors", kls) == [(0.0, factor) for factor in factors]
    floors = [0.0, 0.3, 0.3, 0.3, 0.3, 0.0, 0.0, 0.0, 0.0]
    assert monitor("floor", kls) == [(floor, 1.0) for floor in floors]
    with pytest.raises(ValueError, match="unknown action 'pray'"):
        monitor("pray", [0.0])


def test_the_anchors_weight_has_the_monitors_factor() -> None:
    safety = {"method": "none", "anchors": {"weight": 2, "per_step": 4}}
    assert compute_anchor_weight(safety, MonitorState(0.0, 4.0)) == 8.0
    assert compute_anchor_weight({"method": "none", "anchors": None}, MonitorState(0.0, 4.0)) == 0.0
    assert compute_anchor_weight({"method": "none"}, MonitorState()) == 0.0


@pytest.mark.parametrize(
    ("safety", "expected"),
    [
        ({"method": "none", "anchors": None}, False),
        ({"method": "none"}, False),
        ({"method": "none", "anchors": {"weight": 2.0}}, True),
        ({"method": "fixed_kl", "beta": 0.0}, False),
        ({"method": "fixed_kl", "beta": 0.1}, True),
        ({"method": "adaptive_kl", "beta_max": 0, "replay": False}, False),
        ({"method": "adaptive_kl", "beta_max": 0, "replay": True}, True),
        ({"method": "adaptive_kl", "beta_max": 0.9}, True),
        ({"method": "filter", "anchors": None}, False),
        ({"method": "filter", "anchors": {"weight": 2.0}}, True),
        ({"method": "constrained_sft"}, True),
    ],
)
def test_what_holds_the_model_is_protection(safety: dict[str, Any], expected: bool) -> None:
    assert is_protected(safety) is expected


@pytest.mark.parametrize(
    ("critic", "fields", "expected"),
    [
        ({"type": "constant", "s": 0.0}, {}, False),
        ({"type": "constant", "s": 0.25}, {}, True),
        ({"type": "constant", "s": 0.25}, {"schedule": "threshold"}, False),
        ({"type": "constant", "s": 0.75}, {"schedule": "threshold"}, True),
        ({"type": "constant", "s": 0.25}, {"beta_max": 0.0}, False),
        ({"type": "constant", "s": 0.75}, {"beta_max": 0.0}, True),
        ({"type": "constant", "s": 0.75}, {"beta_max": 0.0, "replay": False}, False),
        ({"type": "constant", "s": 0.0}, {"beta_min": 0.1}, True),
        ({"type": "constant", "s": 0.75}, {"beta_max": 0.0, "threshold": "auto"}, True),
        ({"type": "constant", "s": 0.25}, {"beta_max": 0.0, "threshold": "auto"}, False),
        ({"type": "constant", "s": 0.0}, {"anchors": {"weight": 2.0}}, True),
        ({"type": "activation"}, {}, True),
    ],
)
def test_a_critic_that_looks_at_nothing_protects_as_far_as_its_s_does(
    critic: dict[str, Any], fields: dict[str, Any], expected: bool
) -> None:
    law = {"method": "adaptive_kl", "beta_min": 0.0, "beta_max": 0.9, "schedule": "linear", "threshold": 0.5}
    law |= {"replay": True, "scope": "example", "anchors": None}
    assert is_protected(law | {"critic": critic} | fields) is expected
    if critic["type"] == "constant":
        twice = {"type": "combined", "critics": [critic, critic], "rule": "max", "weights": None}
        assert is_protected(law | {"critic": twice} | fields) is expected
        seeing = twice | {"critics": [critic, {"type": "activation"}]}
        assert is_protected(law | {"critic": seeing} | fields) is bool(fields.get("replay", True))
