"""Comparisons: what is measured, and what it means that something was not."""

import pytest

from app.domain.canonical import canonical_bytes, parse_canonical
from app.domain.evaluation import (
    KINDS_OF,
    NAMES,
    NOT_MEASURED,
    TELLS,
    Measure,
    compare_shares,
    measure_difference,
    measure_share,
)
from app.domain.intervals import wilson
from tests.unit.app.domain.evaluation_examples import make_result


def test_shares_are_counted_over_replies_and_their_intervals_over_prompts() -> None:
    found = compare_shares("attack_success.sampled", "rules", [0, 1, 4], [4, 4, 4], samples=4, unjudged=2)
    assert found.before == Measure(5 / 12, *wilson(5 / 12, 3), 3, 5)
    assert found.after == Measure(1.0, *wilson(1.0, 3), 3, 12)
    assert found.difference.value == pytest.approx(7 / 12)
    assert found.difference.n == 3
    assert (found.samples, found.unjudged, found.quantity) == (4, 2, "attack_success")


def test_nothing_judged_is_nothing_measured() -> None:
    found = compare_shares("attack_success.greedy", "openai", [], [], unjudged=9)
    assert found.before == found.after == found.difference == NOT_MEASURED
    assert (NOT_MEASURED.value, NOT_MEASURED.n) == (None, 0)
    assert found.correlation is None
    assert found.unjudged == 9


def test_a_base_model_has_no_after() -> None:
    found = compare_shares("attack_success.greedy", "rules", [1, 0], None)
    assert found.before.value == 0.5
    assert found.after == found.difference == NOT_MEASURED


def test_shares_of_other_prompts_have_no_difference() -> None:
    with pytest.raises(ValueError, match="different prompts"):
        measure_difference(measure_share(1, 2, 1), measure_share(1, 3, 1), 0.0)
    with pytest.raises(ValueError, match="different prompts"):
        measure_difference(measure_share(1, 2, 1), NOT_MEASURED, 0.0)


def test_every_quantity_that_a_judge_tells_is_known() -> None:
    told = set().union(*TELLS.values())
    assert told == KINDS_OF.keys()
    assert told <= set(NAMES)


def test_a_result_is_the_same_after_its_canonical_form() -> None:
    result = make_result()
    body = result.to_body()
    assert parse_canonical(canonical_bytes(body)) == body
    found = result.find("attack_success.greedy")
    assert found is not None
    assert found.judge == "miniature"
    assert result.find("attack_success.greedy", "rules") is not None
    assert result.find("attack_success.prefill") is None
