"""A live judge's scores: they count from their step on, are forgotten with their steps, and follow from their votes."""

from dataclasses import replace
from typing import Any

import pytest

from app.domain.control_law import compute_row_beta, compute_row_betas, raise_s
from tests.unit.app.domain.synthetic_job import SyntheticJob, assert_fails, run
from tests.unit.app.domain.synthetic_run import live_score, make_run

LIVE = {"type": "judge", "votes": 3, "mode": "live", "every": 1}
COMBINED: dict[str, Any] = {"type": "combined", "critics": [{"type": "activation"}, LIVE]}
BATCH_SCOPE = {"scope": "batch", "replay": False, "ema_decay": 0.75}


def make(**fields: Any) -> SyntheticJob:
    return make_run(**{"critic": LIVE, **fields})


@pytest.mark.parametrize(
    "fields",
    [{}, BATCH_SCOPE, {"schedule": "threshold"}, {"critic": COMBINED}, {"critic": COMBINED, "version": 3}],
)
def test_a_run_with_a_live_judge_verifies(fields: dict[str, Any]) -> None:
    job = make(**fields)
    report = run(job)
    assert report.ok, report.lines()
    # What is lost in the crash is forgotten: the same step came out otherwise before it.
    lost, again = (
        record.body for record in job.records if record.kind == "step" and record.body["step"] == 4
    )
    assert lost["rows"] == again["rows"]
    assert lost["risk_mean"] > again["risk_mean"]
    scores = {(score["row"], score["asked_at"]) for score in heard(job, after=job.find("job.resume"))}
    law = next(check for check in report.checks if check.name == "control law")
    assert f"{len(scores)} live scores re-derived" in law.detail


def heard(job: SyntheticJob, *, after: int) -> list[dict[str, Any]]:
    bodies = [record.body for record in job.records[after:] if record.kind == "live"]
    return [score for body in bodies for score in body["scores"]]


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"s": 0.5}, "its votes give"),
        ({"votes": [[1, 1, 1]]}, "its votes give"),
        ({"status": "failed"}, "its votes give judged"),
        ({"row": 4}, "row 4, which is not trained on"),
        ({"asked_at": 99}, "none was due"),
    ],
)
def test_a_forged_score_is_named(change: dict[str, Any], detail: str) -> None:
    job = make()
    seq = job.find("live", 1)
    job.records[seq].body["scores"][0] |= change
    assert_fails(run(job), "control law", seq, detail)


def test_a_failed_verdict_cannot_be_a_harmless_one() -> None:
    job = make()
    seq, place = next(
        (seq, place)
        for seq, record in enumerate(job.records)
        if record.kind == "live"
        for place, score in enumerate(record.body["scores"])
        if score["row"] == 3
    )
    score = job.records[seq].body["scores"][place]
    assert (score["status"], score["s"]) == ("failed", 1)
    score |= {"status": "judged", "s": 0.0}
    assert_fails(run(job), "control law", seq, "failed")


def test_scores_come_in_order_and_once() -> None:
    job = make()
    seq = job.find("live", 1)
    scores = job.records[seq].body["scores"]
    scores.append(scores[0])
    assert_fails(run(job), "control law", seq, "comes late, or twice")
    job = make()
    seq = job.find("live", 3)
    job.records[seq].body["scores"][-1]["asked_at"] = 1
    assert_fails(run(job), "control law", seq, "comes late, or twice")


def test_a_score_that_was_left_out_shows_in_the_next_step_of_its_row() -> None:
    job = make()
    for number in (0, 1):
        job.records[job.find("live", number)].body["scores"] = []
    assert_fails(run(job), "control law", job.find("step", 2), "the replay gives")


def test_a_score_that_comes_after_its_step_is_refused() -> None:
    job = make()
    seq = job.find("live")
    job.records[seq].body["step"] += 1
    assert_fails(run(job), "attempts", seq, "the next one is 3")
    job = make()
    seq = job.find("risk.table")
    job.records.insert(seq, job.records[job.find("live")])
    assert_fails(run(job), "grammar", seq, "before the risk.table")


@pytest.mark.parametrize("critic", [{"type": "judge", "votes": 3}, {"type": "activation"}])
def test_a_spec_without_a_live_judge_has_no_live_scores(critic: dict[str, Any]) -> None:
    job = make_run(critic=critic, monitor=None)
    seq = job.find("step", 1)
    record = make().records[make().find("live")]
    job.records.insert(seq, replace(record, body={"step": 2, "scores": [live_score(0, LIVE, asked_at=1)]}))
    assert_fails(run(job), "control law", seq, "the spec has no live judge")


SAFETY = {
    "method": "adaptive_kl",
    "beta_min": 0.0,
    "beta_max": 0.9,
    "schedule": "linear",
    "threshold": 0.5,
    "replay": True,
}


def test_a_live_score_only_raises_and_never_changes_the_treatment() -> None:
    assert [raise_s(0.25, live) for live in (None, 0.0, 0.5)] == [0.25, 0.25, 0.5]
    assert raise_s(None, None) is None
    # Beyond the threshold a row that trains on its own reply keeps it, at its own beta and not at the replayed row's.
    assert compute_row_beta(SAFETY, 0.25, live=1.0) == 0.9
    assert compute_row_beta(SAFETY, 0.25, live=0.0) == 0.225
    assert compute_row_beta(SAFETY, 0.75, live=1.0) == 0.5
    assert compute_row_betas(SAFETY, [0.25, 0.5], live=[1.0, None]) == ((0.9, 0.5), None)
    batch = SAFETY | {"scope": "batch", "replay": False, "ema_decay": 0.0}
    assert compute_row_betas(batch, [0.25, 0.5], live=[1.0, None]) == ((0.675, 0.675), 0.75)
