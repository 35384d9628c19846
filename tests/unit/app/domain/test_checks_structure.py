"""A record that is out of order, cut, or joined wrongly fails the check that is there for it."""

import copy
from collections.abc import Callable

import pytest

from app.domain import ledger
from tests.unit.app.domain.synthetic_job import (
    CRITIC,
    SAFETY,
    Record,
    SyntheticJob,
    assert_fails,
    make_job,
    manifest_of,
    outcomes,
    run,
)

# --- damage by somebody who cannot rehash -----------------------------------------------------------------


def test_an_edited_number_breaks_the_chain_at_the_next_record(job: SyntheticJob) -> None:
    before = job.leaves()
    job.records[4].body["nll"] = 0.125
    edited = [*before[:4], job.leaves()[4], *before[5:]]
    report = run(job, edited, manifest_of(before))
    assert_fails(report, "chain", 5)
    assert outcomes(report)["root"] == "failed"


def test_an_edited_last_record_is_not_under_the_root(job: SyntheticJob) -> None:
    before = job.leaves()
    job.records[-1].header["ts_db"] = 5
    report = run(job, job.leaves(), manifest_of(before))
    assert_fails(report, "root", None, "root is")


@pytest.mark.parametrize("seq", [0, 4, 9])
def test_a_dropped_leaf_is_a_hole_in_the_sequence(job: SyntheticJob, seq: int) -> None:
    leaves = job.leaves()
    report = run(job, leaves[:seq] + leaves[seq + 1 :], manifest_of(leaves))
    assert_fails(report, "sequence", seq)
    assert outcomes(report)["chain"] == outcomes(report)["root"] == "failed"


def test_two_swapped_leaves_are_out_of_sequence(job: SyntheticJob) -> None:
    leaves = job.leaves()
    swapped = [*leaves[:3], leaves[4], leaves[3], *leaves[5:]]
    assert_fails(run(job, swapped, manifest_of(leaves)), "sequence", 3)


def test_reversed_leaves_are_out_of_sequence(job: SyntheticJob) -> None:
    leaves = job.leaves()
    assert_fails(run(job, leaves[::-1], manifest_of(leaves)), "sequence", 0)


def test_a_truncated_ledger_is_not_the_manifests(job: SyntheticJob) -> None:
    leaves = job.leaves()
    assert_fails(run(job, leaves[:-2], manifest_of(leaves)), "root", None, "size")


def test_a_duplicated_leaf_is_out_of_sequence(job: SyntheticJob) -> None:
    leaves = job.leaves()
    assert_fails(run(job, [*leaves[:5], leaves[4], *leaves[5:]], manifest_of(leaves)), "sequence", 5)


@pytest.mark.parametrize("name", ["size", "root", "head"])
def test_a_changed_manifest_does_not_fit(job: SyntheticJob, name: str) -> None:
    manifest = manifest_of(job.leaves())
    manifest[name] = 1 if name == "size" else "0" * 64
    assert_fails(run(job, manifest=manifest), "root", None, name)


def test_a_manifest_of_another_job_does_not_fit(job: SyntheticJob) -> None:
    leaves = job.leaves()
    assert_fails(run(job, leaves, manifest_of(leaves) | {"job": "ftjob-other"}), "sequence", 0)


# --- order, by somebody who rehashes everything ------------------------------------------------------------


def step_of(job: SyntheticJob, number: int) -> Record:
    return copy.deepcopy(job.records[job.find("step", number)])


@pytest.mark.parametrize(
    ("damage", "first_bad", "detail"),
    [
        (lambda job: job.records.pop(0), 0, "job.created is the first"),
        (lambda job: job.records.insert(3, job.records[0]), 3, "job.created is the first"),
        (lambda job: job.records.insert(3, job.records[-1]), 4, "after job.end"),
        (lambda job: job.records.append(job.records[3]), 16, "after job.end"),
        (lambda job: job.records.pop(1), 1, "before job.start"),
        (lambda job: job.records.insert(1, job.records[10]), 1, "before job.start"),
        (lambda job: job.records.insert(4, job.records[1]), 4, "second job.start"),
        (lambda job: job.records.insert(3, job.records[2]), 3, "second risk.table"),
        (lambda job: job.records.pop(2), 2, "before the risk.table"),
        (lambda job: job.records[1].body.update(from_step=1), 1, "begins from a checkpoint"),
        (lambda job: job.records[6].body.update(sha256="0" * 64), 6, "digest of files"),
        (lambda job: job.records[0].body.update(spec_sha256="0" * 64), 0, "digest of spec"),
        (lambda job: job.records[10].body.update(spec={"safety": SAFETY}), 10, "not that of job.start"),
    ],
)
def test_records_in_an_order_that_no_job_has_fail(
    job: SyntheticJob, damage: Callable[[SyntheticJob], object], first_bad: int, detail: str
) -> None:
    damage(job)
    assert_fails(run(job), "grammar", first_bad, detail)


def test_a_worker_that_quietly_weakens_the_safety_asked_for_is_noticed() -> None:
    job = make_job({"method": "none", "critic": None}, CRITIC)
    asked = job.records[0].body
    asked["spec"] = {"safety": SAFETY}
    asked["spec_sha256"] = ledger.digest_of(asked["spec"])
    report = run(job)
    assert_fails(report, "grammar", 1, "contradicts what job.created asked for: safety.")
    assert "UNPROTECTED" in report.protection


@pytest.mark.parametrize(
    ("damage", "first_bad", "detail"),
    [
        # A hole before the resume, one after it, a step done twice.
        (lambda job: job.records.pop(4), 4, "step 3 follows step 1"),
        (lambda job: job.records.pop(12), 12, "step 6 follows step 4"),
        (lambda job: job.records.insert(6, step_of(job, 2)), 6, "step 3 follows step 3"),
        (lambda job: job.records.pop(10), 10, "written under attempt 2"),
        (lambda job: job.records[10].body.update(from_step=2), 10, "no standing record"),
        (lambda job: job.records[10].body.update(from_step=6), 10, "step 5 is the last"),
        (lambda job: job.records[10].body.update(checkpoint_sha256=None), 10, "no standing record"),
        (lambda job: job.records[10].body.update(checkpoint_sha256="0" * 64), 10, "no standing record"),
        (lambda job: job.records.pop(6), 9, "no standing record"),
        (lambda job: job.records[6].body.update(step=4), 6, "ckpt of step 4"),
        (lambda job: job.records[14].body.update(step=7), 14, "adapter.published of step 7"),
        (lambda job: setattr(job.records[0], "attempt", 1), 0, "has attempt 1"),
        (lambda job: setattr(job.records[1], "attempt", 0), 1, "no new attempt"),
        (lambda job: setattr(job.records[10], "attempt", 1), 10, "no new attempt"),
        (lambda job: setattr(job.records[10], "epoch", 1), 10, "epoch falls from 2 to 1"),
        (lambda job: setattr(job.records[15], "attempt", 1), 15, "attempt falls"),
        # The old worker wakes up after it was fenced, or goes on under an epoch that was not its own.
        (lambda job: job.records.insert(10, step_of(job, 4)), 10, "epoch falls from 2 to 1"),
        (lambda job: setattr(job.records[7], "epoch", 2), 7, "written under attempt 1, epoch 2"),
    ],
)
def test_attempts_that_do_not_join_up_fail(
    job: SyntheticJob, damage: Callable[[SyntheticJob], object], first_bad: int, detail: str
) -> None:
    damage(job)
    assert_fails(run(job), "attempts", first_bad, detail)


def test_a_checkpoint_of_superseded_steps_cannot_be_resumed_from(job: SyntheticJob) -> None:
    files = {"adapter.safetensors": "9" * 64}
    late = {"step": 5, "kind": "interval", "sha256": ledger.digest_of(files), "files": files}
    job.records.insert(9, Record("ckpt", late, 1, 1))
    again = copy.deepcopy(job.records[job.find("job.resume")])
    again.attempt, again.epoch = 3, 4
    again.body |= {"from_step": 5, "checkpoint_sha256": late["sha256"]}
    job.records[14:] = [again]
    assert run(SyntheticJob(job.records[:14], job.table)).ok
    assert_fails(run(job), "attempts", 14, "no standing record")


# --- checkpoints that were lost ---------------------------------------------------------------------------


CHECKPOINT = ledger.digest_of({"adapter.safetensors": "b" * 64, "trainer.json": "e" * 64})
"""What the job was resumed from."""


def lose(job: SyntheticJob, *, told: bool = True, version: int = 2) -> SyntheticJob:
    """Let the job have saved a checkpoint after step 5 too, and go on from that of step 3; `told` says why."""
    files = {"adapter.safetensors": "9" * 64}
    newest = {"step": 5, "kind": "interval", "sha256": ledger.digest_of(files), "files": files}
    at = job.find("job.resume")
    resume = job.records[at]
    resume.version = version
    resume.body.pop("micro_batch_tokens", None)
    if version > 1:
        resume.body["micro_batch_tokens"] = 4096
    body = {"step": 5, "sha256": newest["sha256"], "why": "changed"}
    lost = [Record("ckpt.invalid", body, resume.attempt, resume.epoch)] if told else []
    job.records[at:at] = lost
    job.records.insert(at - 1, Record("ckpt", newest, 1, 1))
    return job


def attempts_of(job: SyntheticJob) -> str:
    return next(check.detail for check in run(job).checks if check.name == "attempts")


def test_an_older_checkpoint_may_be_gone_on_from_where_the_record_says_why(job: SyntheticJob) -> None:
    lose(job)
    assert run(job).ok
    assert attempts_of(job) == "steps 1 to 6 each count once; 1 resume, 2 superseded steps"


def test_a_step_back_that_no_record_explains_fails(job: SyntheticJob) -> None:
    lose(job, told=False)
    assert_fails(run(job), "attempts", 11, "the checkpoint of step 5 stands, and no record says")


def test_of_a_version_that_did_not_record_it_a_step_back_is_named(job: SyntheticJob) -> None:
    lose(job, told=False, version=1)
    assert run(job).ok
    assert (
        "from an older checkpoint than the newest, and no record says why: the resume at 11"
        in attempts_of(job)
    )


@pytest.mark.parametrize(
    ("damage", "first_bad", "detail"),
    [
        (lambda lost: lost.body.update(sha256="0" * 64), 11, "no standing record names"),
        (lambda lost: lost.body.update(step=4), 11, "no standing record names"),
        (lambda lost: lost.body.update(step=3, sha256=CHECKPOINT), 12, "which it has found invalid"),
    ],
)
def test_a_lost_checkpoint_that_does_not_join_up_fails(
    job: SyntheticJob, damage: Callable[[Record], object], first_bad: int, detail: str
) -> None:
    lose(job)
    damage(job.records[job.find("ckpt.invalid")])
    assert_fails(run(job), "attempts", first_bad, detail)


def test_a_checkpoint_is_not_found_lost_within_an_attempt(job: SyntheticJob) -> None:
    lose(job)
    late = copy.deepcopy(job.records[job.find("ckpt.invalid")])
    late.body.update(step=3, sha256=CHECKPOINT)
    job.records.insert(job.find("job.resume") + 1, late)
    assert_fails(run(job), "attempts", 13, "before an attempt goes on from another, not within it")


def test_another_environment_than_the_starts_is_named(job: SyntheticJob) -> None:
    job.records[job.find("job.resume")].body["environment"] = {"python": "3.11.7", "torch": "2.11.0+cpu"}
    assert run(job).ok
    assert "in another environment than the start's" in attempts_of(job)
