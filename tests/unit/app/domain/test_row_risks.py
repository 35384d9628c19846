"""What is shown of the risks of rows under each visibility."""

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest

from app.domain.control_law import compute_beta
from app.domain.row_risks import (
    EDGES,
    VISIBILITIES,
    Visibility,
    bound_beta,
    bucket_of,
    choose_shown,
    describe_risks,
    expect_beta,
    name_bucket,
    pack_scores,
    unpack_scores,
)
from app.domain.safety_spec import PRESETS, AdaptiveKL, FixedKL

LAW = AdaptiveKL(beta_min=0.1, beta_max=0.9, threshold=0.7, anchors=None, monitor=None).model_dump()
SCORES = {0: 0.123456, 2: 0.987654, 3: 0.876543, 5: 0.198765, 7: 0.654321}


def test_scores_come_back_and_unmeasured_rows_are_no_numbers() -> None:
    found = unpack_scores(pack_scores({**SCORES, 6: None}, 8))
    assert len(found) == 8
    assert {row: s for row, s in enumerate(found) if not math.isnan(s)} == SCORES
    # A comparison with no number is false, so that such a row is never left out for its risk.
    assert not found[6] >= 0


def test_buckets_cover_the_scale() -> None:
    assert [bucket_of(edge) for edge in EDGES] == [0, 1, 2, 3, 4, 4]
    assert bucket_of(0.1999) == 0
    assert name_bucket(4) == "0.8 to 1"


def test_full_shows_scores_in_order() -> None:
    found = describe_risks(LAW, {**SCORES, 6: None}, "full")
    assert found is not None
    assert [each["row"] for each in found["riskiest"]] == [2, 3, 7, 5, 0]
    assert [each["s"] for each in found["riskiest"]] == sorted(SCORES.values(), reverse=True)
    assert found["rows"] == 5
    assert found["treatments"] == {"own": 3, "replay": 2}
    assert [each["rows"] for each in found["distribution"]] == [2, 0, 0, 1, 2]


def test_buckets_hide_the_scores_and_their_order() -> None:
    found = describe_risks(LAW, SCORES, "bucketed")
    assert found is not None
    assert [each["row"] for each in found["riskiest"]] == [2, 3, 7, 0, 5]
    swapped = describe_risks(
        LAW, {**SCORES, 2: SCORES[3], 3: SCORES[2], 0: SCORES[5], 5: SCORES[0]}, "bucketed"
    )
    assert swapped == found
    assert expect_beta(LAW, SCORES, "bucketed") == expect_beta(LAW, {**SCORES, 7: 0.61}, "bucketed")
    assert not [s for s in SCORES.values() if str(s) in json.dumps(found)]


def shown(visibility: Visibility, threshold: object) -> Mapping[str, Any]:
    """Return what is shown of a report on SCORES, of which a filter by the threshold of LAW drops two rows."""
    found: dict[str, dict[str, Any]] = {
        each: {"risk": describe_risks(LAW, SCORES, each), "expected_beta_mean": 0.5, "steps": steps}
        for each, steps in (("full", 3), ("bucketed", 3), ("none", 5))
    }
    return choose_shown(found, visibility, threshold)


@pytest.mark.parametrize("threshold", [0.7, 0.8000000001, 1.0])
def test_threshold_of_the_callers_tells_nothing_that_buckets_hide(threshold: float) -> None:
    found = shown("bucketed", threshold)
    assert "treatment" not in json.dumps(found)
    assert (found["steps"], found["expected_beta_mean"]) == (5, 0.5)
    assert [each["row"] for each in found["risk"]["riskiest"]] == [2, 3, 7, 0, 5]
    assert sum(each["rows"] for each in found["risk"]["distribution"]) == 5


@pytest.mark.parametrize("threshold", [None, "auto", 0.0, 0.2, 0.8])
def test_threshold_that_parts_the_rows_as_buckets_do_is_told(threshold: object) -> None:
    found = shown("bucketed", threshold)
    assert (found["steps"], found["risk"]["treatments"]) == (3, {"own": 3, "replay": 2})


def test_other_visibilities_do_not_ask_for_the_threshold() -> None:
    assert shown("full", 0.7)["risk"]["treatments"] == {"own": 3, "replay": 2}
    assert shown("none", 0.7) == {"risk": None, "expected_beta_mean": 0.5, "steps": 5}


def test_report_without_risks_has_its_steps() -> None:
    empty = {"risk": None, "expected_beta_mean": None, "steps": 5}
    assert choose_shown(dict.fromkeys(VISIBILITIES, empty), "bucketed", 0.7) == empty


def test_nothing_is_shown_where_nothing_may_be_or_is_there() -> None:
    assert describe_risks(LAW, SCORES, "none") is None
    assert describe_risks(LAW, {0: None}, "full") is None
    assert expect_beta(LAW, SCORES, "none") is None
    assert expect_beta(LAW, {**SCORES, 6: None}, "full") is None


def test_expected_beta_is_the_mean_of_the_rows() -> None:
    law = {**LAW, "replay": False}
    expected = [compute_beta(s, beta_min=0.1, beta_max=0.9) for s in SCORES.values()]
    assert expect_beta(law, SCORES, "full") == pytest.approx(sum(expected) / 5)


def test_batch_scope_steers_by_the_mean_risk() -> None:
    law = {**PRESETS["paper"].model_dump(), "threshold": 0.5}
    mean = sum(SCORES.values()) / 5
    assert expect_beta(law, SCORES, "full") == pytest.approx(0.1 + 0.8 * mean)


@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_methods_that_do_not_steer_need_no_risk(visibility: str) -> None:
    fixed = FixedKL(beta=0.3, anchors=None, monitor=None).model_dump()
    assert expect_beta(fixed, {0: None}, visibility) == 0.3  # type: ignore[arg-type]
    assert expect_beta(PRESETS["off"].model_dump(), {}, visibility) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("scope", ["example", "batch"])
@pytest.mark.parametrize("schedule", ["linear", "threshold"])
@pytest.mark.parametrize("replay", [True, False])
@pytest.mark.parametrize("beta_max", [0.3, 0.9])
def test_exact_beta_lies_between_its_bounds(scope: str, schedule: str, replay: bool, beta_max: float) -> None:
    """Both ways that a replayed row's weight can jump, and rows at either end of every bucket."""
    law = {**LAW, "scope": scope, "schedule": schedule, "replay": replay, "beta_max": beta_max}
    for shift in (0.0, 0.05, 0.1, 0.1999):
        scores = {row: min(1.0, edge + shift) for row, edge in enumerate(EDGES[:-1])} | {9: 0.7, 10: 0.6999}
        risks, exact = describe_risks(law, scores, "bucketed"), expect_beta(law, scores, "full")
        assert risks is not None
        bounds = bound_beta(law, risks["distribution"])
        assert bounds is not None
        assert exact is not None
        assert bounds[0] <= exact <= bounds[1]
        assert bounds[1] - bounds[0] < 0.5


def test_bounds_tell_no_more_than_the_buckets() -> None:
    others = {**SCORES, 7: 0.61, 2: 0.81}
    found = [describe_risks(LAW, scores, "bucketed") for scores in (SCORES, others)]
    assert found[0] is not None
    assert found[1] is not None
    assert bound_beta(LAW, found[0]["distribution"]) == bound_beta(LAW, found[1]["distribution"])
    assert bound_beta(FixedKL(beta=0.3).model_dump(), found[0]["distribution"]) is None
