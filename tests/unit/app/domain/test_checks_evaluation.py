"""Evaluations on record: whole, in their place, and right in every number; one damage for each way to bend them."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from app.domain.evaluation import miss_prefixes
from tests.unit.app.domain.evaluation_examples import make_body
from tests.unit.app.domain.synthetic_job import (
    Record,
    SyntheticJob,
    assert_fails,
    make_job,
    outcomes,
    run,
)

Damage = Callable[[dict[str, Any]], object]
STEPS = 6


def evaluated(damage: Damage | None = None, *, at: int | None = None) -> SyntheticJob:
    """Return a job with an evaluation before its adapter, or before another record."""
    job = make_job()
    body = copy.deepcopy(make_body(STEPS))
    if damage is not None:
        damage(body)
    place = job.find("adapter.published") if at is None else at
    last = job.records[place - 1]
    job.records.insert(place, Record("eval", body, last.attempt, last.epoch))
    return job


def comparison(body: dict[str, Any], name: str, judge: str | None = "rules") -> dict[str, Any]:
    found: dict[str, Any] = next(
        each for each in body["comparisons"] if (each["name"], each["judge"]) == (name, judge)
    )
    return found


def test_a_whole_evaluation_is_ok() -> None:
    report = run(evaluated())
    assert report.ok, report.lines()
    assert outcomes(report)["evaluation"] == "ok"
    check = next(check for check in report.checks if check.name == "evaluation")
    assert "12 prompts of file-abc by miniature, rules" in check.detail


def test_a_record_without_one_is_not_checked() -> None:
    assert outcomes(run(make_job()))["evaluation"] == "not checked"


def test_several_may_stand() -> None:
    job = evaluated()
    place = job.find("eval")
    job.records.insert(place, copy.deepcopy(job.records[place]))
    assert run(job).ok


SIDES = ("before", "after", "difference")


def miss(body: dict[str, Any], judge: str, **changes: Any) -> None:
    """Add that beginnings of the data were asked for and not found."""
    body["comparisons"].append({**asdict(miss_prefixes(judge)), **changes})


def test_beginnings_that_were_not_found_may_be_told() -> None:
    def tell(body: dict[str, Any]) -> None:
        for judge in ("miniature", "rules"):
            miss(body, judge)

    report = run(evaluated(tell))
    assert report.ok, report.lines()


DAMAGES: dict[str, tuple[Damage, str]] = {
    "left out": (
        lambda body: body["comparisons"].remove(comparison(body, "attack_success.greedy")),
        "attack_success.greedy by rules was asked for and is not there",
    ),
    "twice": (
        lambda body: body["comparisons"].append(comparison(body, "attack_success.greedy")),
        "stands twice",
    ),
    "no judge": (lambda body: body.update(judges=[]), "the judges are none"),
    "unknown judge": (
        lambda body: body["judges"].append({"type": "oracle", "sha256": "a" * 64}),
        "the judges are miniature, rules, oracle",
    ),
    "somebody else's": (
        lambda body: comparison(body, "exact_match.greedy", None).update(judge="openai"),
        "which was no judge",
    ),
    "not asked for": (
        lambda body: comparison(body, "exact_match.greedy", None).update(name="attack_success.prefill"),
        "nothing of the kind was asked for",
    ),
    "count": (
        lambda body: comparison(body, "attack_success.sampled")["after"].update(count=5),
        "after.value is 0.875; the counts give 0.625",
    ),
    "share": (
        lambda body: comparison(body, "attack_success.sampled")["after"].update(value=0.5),
        "after.value is 0.5; the counts give 0.875",
    ),
    "interval": (
        lambda body: comparison(body, "over_refusal.greedy")["after"].update(high=0.51),
        "after.high is 0.51",
    ),
    "difference": (
        lambda body: comparison(body, "over_refusal.greedy")["difference"].update(value=0.0),
        "difference.value is 0",
    ),
    "interval of the difference": (
        lambda body: comparison(body, "over_refusal.greedy")["difference"].update(low=-0.9),
        "difference.low is -0.9",
    ),
    "correlation": (
        lambda body: comparison(body, "over_refusal.greedy").update(correlation=2.0),
        "the correlation is 2",
    ),
    "other prompts": (
        lambda body: comparison(body, "over_refusal.greedy")["after"].update(n=7),
        "8 prompts before and 7 after",
    ),
    "unjudged hidden": (
        lambda body: comparison(body, "attack_success.greedy").update(unjudged=0),
        "3 prompts judged and 0 not; there are 4",
    ),
    "samples": (
        lambda body: comparison(body, "attack_success.sampled").update(samples=1),
        "which is not what was drawn",
    ),
    "more than there are": (
        lambda body: comparison(body, "attack_success.greedy")["after"].update(count=4),
        "counts 4 of 3 prompts",
    ),
    "one side": (
        lambda body: comparison(body, "over_refusal.greedy").update(
            after={"value": None, "low": None, "high": None, "n": 0, "count": None}
        ),
        "a difference needs both sides",
    ),
    "mean": (
        lambda body: comparison(body, "loss", None)["difference"].update(value=-1.2),
        "the two sides give -1.25",
    ),
    "interval of a mean": (
        lambda body: comparison(body, "loss", None)["after"].update(low=1.3),
        "outside of its interval",
    ),
    "mean of one": (
        lambda body: [comparison(body, "loss", None)[side].update(n=1) for side in SIDES],
        "before is no mean of 1 prompts",
    ),
    "beginnings of nobody": (lambda body: miss(body, "openai"), "nothing of the kind was asked for"),
    "beginnings that were tried": (
        lambda body: miss(body, "rules", unjudged=1),
        "nothing of the kind was asked for",
    ),
    "agreement": (lambda body: body["agreements"][0].update(agreed=9), "agreed 9 times of 8"),
    "step": (lambda body: body.update(step=5), "eval of step 5, but step 6 is the last"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_was_bent_is_found(name: str) -> None:
    damage, detail = DAMAGES[name]
    job = evaluated(damage)
    assert_fails(run(job), "evaluation", job.find("eval"), detail)


def test_its_place_is_between_the_last_step_and_the_adapter() -> None:
    end = make_job().find("job.end")
    assert_fails(run(evaluated(at=end)), "evaluation", end, "after adapter.published")
    job = make_job()
    first = job.find("step")
    assert_fails(run(evaluated(at=first)), "evaluation", first, "before the first step")


def test_before_the_start_it_is_no_record_of_a_job() -> None:
    assert_fails(run(evaluated(at=1)), "grammar", 1)
