"""A job that did less than its spec asks for is found, though every number in its record agrees with every other."""

from typing import Any

import pytest

from app.domain import ledger
from app.domain.control_law import summarise_step
from tests.unit.app.domain.synthetic_job import Record, SyntheticJob, assert_fails, make_job, outcomes, run
from tests.unit.app.domain.synthetic_run import HYPERPARAMETERS, make_run

MIXED = ["vaccine", "lisa", "safety_mix"]


def assert_plan_fails(job: SyntheticJob, first_bad: int | None, detail: str) -> None:
    """Assert that the plan is broken here; a check before it may have found it too."""
    report = run(job)
    check = next(check for check in report.checks if check.name == "plan")
    assert (check.outcome, check.first_bad) == ("failed", first_bad), report.lines()
    assert detail in check.detail
    assert not report.ok


def renumber(job: SyntheticJob) -> None:
    """Number the steps anew, and let the end say what is left."""
    steps = [record for record in job.records if record.kind == "step"]
    for number, record in enumerate(steps, start=1):
        record.body["step"] = number
    job.records[-2].body["step"] = len(steps)
    tokens = sum(record.body["tokens"] for record in steps)
    job.records[-1].body |= {"steps": len(steps), "trained_tokens": tokens}


def without_crash(job: SyntheticJob) -> SyntheticJob:
    """Return the job without its first attempt's steps, as if it had begun anew."""
    resume = job.records[job.find("job.resume")]
    resume.body |= {"from_step": 0, "checkpoint_sha256": None}
    first, last = job.find("step"), job.find("job.resume")
    redone = [Record(each.kind, each.body, 2, 3, version=2) for each in job.records[first : first + 2]]
    job.records[first:last] = []
    job.records[first + 1 : first + 1] = redone
    return job


def test_the_helpers_make_a_job_that_verifies() -> None:
    job = without_crash(make_run("none"))
    renumber(job)
    assert run(job).ok, run(job).lines()


@pytest.mark.parametrize("method", MIXED)
def test_a_job_that_left_its_alignment_rows_out_is_found(method: str) -> None:
    job = without_crash(make_run(method))
    bodies = [record for record in job.records if record.kind == "step"]
    aligned = next(record for record in bodies if record.body["alignment_rows"])
    for record in bodies:
        record.body["alignment_rows"] = []
        if not record.body["rows"]:
            job.records.remove(record)
    renumber(job)
    report = run(job)
    assert {name for name, outcome in outcomes(report).items() if outcome == "failed"} == {"plan"}
    first = job.find("step") if method != "safety_mix" else job.records.index(aligned)
    assert_fails(report, "plan", first, "the plan gives")


def test_one_huge_step_is_not_a_run() -> None:
    job = without_crash(make_run("none", anchors={}))
    steps = [record for record in job.records if record.kind == "step"]
    rows = sorted({row for record in steps for row in record.body["rows"]})
    for record in steps:
        if record not in (steps[0], steps[4]):
            job.records.remove(record)
    for record in (steps[0], steps[4]):
        record.body["rows"] = rows
    renumber(job)
    assert_plan_fails(job, job.find("step"), "rows is [0, 1, 2, 3, 5, 6, 7]; the plan gives")


@pytest.mark.parametrize("anchors", [[0, 0, 0, 0], [], [0, 1, 2, 3], [7, 0, 1, 2]])
def test_anchors_other_than_the_plans_are_named(anchors: list[int]) -> None:
    job = make_run("none", anchors={})
    seq = job.find("step", 1)
    job.records[seq].body |= {"anchors": anchors, "anchor_kl": 0.02 if anchors else None}
    assert_fails(run(job), "plan", seq, "anchors is [")


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"data_epoch": 1}, "data_epoch is 1; the plan gives 0"),
        ({"alignment_rows": [0]}, "alignment_rows is [0]; the plan gives []"),
        ({"lr": 1e-3}, "the schedule gives"),
        ({"lr": float("nan")}, "lr is NaN"),
    ],
)
def test_a_step_that_is_not_the_plans_is_named(change: dict[str, Any], detail: str) -> None:
    job = make_run("none")
    seq = job.find("step")
    job.records[seq].body |= change
    assert_plan_fails(job, seq, detail)


def test_rows_in_another_order_are_named() -> None:
    job = make_run("none")
    seq = job.find("step")
    job.records[seq].body["rows"].reverse()
    assert_fails(run(job), "plan", seq, "rows is [")


def test_the_cosine_may_be_another_machines() -> None:
    job = make_run("none")
    body = job.records[job.find("step", 5)].body
    body["lr"] *= 1 + 2**-52
    assert run(job).ok


@pytest.mark.parametrize("method", MIXED)
def test_a_dropped_alignment_row_that_a_step_takes_is_named(method: str) -> None:
    job = make_run(method)
    seq = next(
        at for at, each in enumerate(job.records) if each.kind == "step" and each.body["alignment_rows"]
    )
    job.records[seq].body["alignment_rows"][0] = 3
    assert_fails(run(job), "plan", seq, "alignment_rows is [3")


@pytest.mark.parametrize("method", ["none", *MIXED])
def test_success_takes_every_step_of_the_plan(method: str) -> None:
    job = make_run(method)
    last = job.records.pop(len(job.records) - 3)
    job.records[-2].body["step"] = last.body["step"] - 1
    tokens = job.records[-1].body["trained_tokens"] - last.body["tokens"]
    job.records[-1].body |= {"steps": last.body["step"] - 1, "trained_tokens": tokens}
    assert_plan_fails(job, len(job.records) - 1, f"the plan has {last.body['step']}")


def test_a_step_beyond_the_plan_is_named() -> None:
    job = make_run("vaccine")
    seq = len(job.records) - 2
    extra = {**job.records[seq - 1].body, "step": 11, **summarise_step([], ())._asdict()}
    extra |= {"rows": [], "alignment_rows": [0]}
    job.records.insert(seq, Record("step", extra, 2, 3, version=2))
    assert_plan_fails(job, seq, "step 11 of a run of 10 steps")


@pytest.mark.parametrize("name", sorted(set(HYPERPARAMETERS) - {"overlength"}))
@pytest.mark.parametrize("value", [None, -1, True, "x", 1e300, float(2**53 - 1)])
def test_a_spec_from_which_no_plan_follows_is_refused(name: str, value: object) -> None:
    job = make_run("lisa")
    for record in job.records:
        if record.kind in ("job.start", "job.resume"):
            record.body["spec"][name] = value
    report = run(job)
    assert not report.ok, report.lines()
    assert outcomes(report)["plan"] == "failed"


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("vaccine", {"alignment_epochs": 0}),
        ("lisa", {"user_steps": None}),
        ("lisa", {"alignment_steps": 1.5}),
        ("safety_mix", {"share": 1e9}),
        ("safety_mix", {"share": "all"}),
    ],
)
def test_a_method_from_which_no_plan_follows_is_refused(method: str, change: dict[str, Any]) -> None:
    job = make_run(method)
    for record in job.records:
        if record.kind in ("job.start", "job.resume"):
            record.body["spec"]["safety"] |= change
    created = job.records[0].body
    created["spec"]["safety"] |= dict.fromkeys(change)
    created["spec_sha256"] = ledger.digest_of(created["spec"])
    assert_fails(run(job), "control law", job.find("step"), f"safety.{next(iter(change))}")


def test_steps_of_the_first_version_have_no_plan() -> None:
    report = run(make_job())
    assert report.ok
    check = next(check for check in report.checks if check.name == "plan")
    assert (check.outcome, check.detail) == ("not checked", "no step of version 2 was recorded")
