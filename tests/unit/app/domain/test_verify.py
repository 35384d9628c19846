"""The verifier: a whole synthetic job passes, what cannot be read fails, and nothing raises."""

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.domain import verify
from app.domain.bundle import write_bundle
from app.domain.canonical import canonical_bytes
from app.domain.report import CHECKS
from tests.unit.app.domain.synthetic_job import (
    ADAPTER,
    CONSTANT,
    CRITIC,
    JOB,
    NOT_GIVEN,
    SAFETY,
    TRAINING_FILE,
    Record,
    SyntheticJob,
    assert_fails,
    make_job,
    manifest_of,
    outcomes,
    run,
)

# --- what must pass ---------------------------------------------------------------------------------------


def test_a_complete_job_with_crash_and_resume_verifies(job: SyntheticJob, tmp_path: Path) -> None:
    bundle, adapter, data = tmp_path / "evidence.zip", tmp_path / "adapter.zip", tmp_path / "train.jsonl"
    adapter.write_bytes(ADAPTER)
    data.write_bytes(TRAINING_FILE)
    with bundle.open("wb") as file:
        write_bundle(file, job=JOB, leaves=job.leaves(), risk_table=job.table)
    report = verify.verify_bundle(bundle, adapter=adapter, data=data)
    assert outcomes(report) == dict.fromkeys(CHECKS, "ok") | dict.fromkeys(
        ("plan", *NOT_GIVEN), "not checked"
    )
    assert report.ok
    assert (report.exit_code, report.job, report.state) == (0, JOB, "succeeded")
    text = "\n".join(report.lines())
    assert "this form is unsigned" in text
    assert "1 resume, 2 superseded steps" in text
    assert "protection: adaptive_kl, beta_min 0.1, beta_max 0.99" in text
    assert len(report.lines()) == len(CHECKS) + 3
    canonical_bytes(report.to_dict())
    assert report.to_dict()["ok"] is True


def test_what_is_not_given_is_not_checked(job: SyntheticJob) -> None:
    report = run(job)
    assert report.ok
    assert outcomes(report)["adapter"] == outcomes(report)["training file"] == "not checked"


@pytest.mark.parametrize(
    ("safety", "critic"),
    [
        (SAFETY | {"schedule": "threshold"}, CRITIC),
        (SAFETY | {"beta_min": 0, "beta_max": 1}, CRITIC),
        (SAFETY | {"critic": {"type": "constant", "s": 0.3}}, CONSTANT),
        ({"method": "fixed_kl", "beta": 0.5, "critic": None}, None),
        ({"method": "fixed_kl", "beta": 0.5, "critic": None}, CRITIC),
        ({"method": "none", "critic": None}, None),
        ({"method": "none", "critic": None}, CRITIC),
    ],
)
def test_jobs_of_every_method_verify(safety: dict[str, Any], critic: dict[str, Any] | None) -> None:
    report = run(make_job(safety, critic))
    assert report.ok, report.lines()
    assert ("UNPROTECTED" in report.protection) is (safety["method"] == "none")


def test_every_beginning_of_a_job_verifies_as_a_job_that_has_not_ended(job: SyntheticJob) -> None:
    for size in range(1, len(job.records)):
        table = job.table if size > job.find("risk.table") else None
        report = run(SyntheticJob(job.records[:size], table))
        assert report.ok, report.lines()
        assert (outcomes(report)["end"], report.state) == ("not checked", None)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_job_that_fails_early_verifies(job: SyntheticJob, size: int) -> None:
    tokens = sum(record.body["tokens"] for record in job.records[:size] if record.kind == "step")
    end = {"state": "failed", "error": "training_failed", "steps": max(0, size - 3), "trained_tokens": tokens}
    # The reconciler took over: attempt 2 was claimed, but never wrote a record of its own.
    job.records[size:] = [Record("job.end", end, 2, 3)]
    job.table = job.table if size > 2 else None
    report = run(job)
    assert report.ok, report.lines()
    assert report.state == "failed"


def test_a_resume_from_nothing_starts_again_from_step_0(job: SyntheticJob) -> None:
    seq = job.find("job.resume")
    job.records[seq].body |= {"from_step": 0, "checkpoint_sha256": None}
    again = [Record("step", record.body, 2, 3) for record in job.records[3:6]]
    job.records[seq + 1 : seq + 1] = again
    report = run(job)
    assert report.ok, report.lines()
    assert "5 superseded steps" in "\n".join(report.lines())


# --- records that cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "detail"),
    [
        (lambda leaf: leaf + b" ", "canonical"),
        (lambda leaf: leaf.replace(b'"seq":4', b'"seq":4.0'), "canonical"),
        (lambda leaf: leaf.replace(b'"seq":4', b'"seq":true'), "integer"),
        (lambda leaf: leaf.replace(b"tether.step/1", b"tether.step/9"), "not known"),
        (lambda leaf: leaf.replace(b'"nll":', b'"nlm":'), "has no 'nll'"),
        (lambda leaf: leaf[:-1] + b',"z":1}', "unknown field"),
        (lambda leaf: leaf.replace(b'"beta_max":0', b'"beta_max":3'), "from 0 to 1"),
        (lambda leaf: b"[" + leaf + b"]", "no object"),
        (lambda leaf: b"", "not JSON"),
        (lambda leaf: b"\xff", "UTF-8"),
        (lambda leaf: b"[" * 60_000, "nested"),
        (lambda leaf: b'"' + b"a" * 70_000 + b'"', "65535"),
    ],
)
def test_a_record_that_cannot_be_read_stops_everything(
    job: SyntheticJob, damage: Callable[[bytes], bytes], detail: str
) -> None:
    leaves = job.leaves()
    damaged = damage(leaves[4])
    assert damaged != leaves[4]
    report = run(job, [*leaves[:4], damaged, *leaves[5:]], manifest_of(leaves))
    assert_fails(report, "records", 4, detail)
    assert set(outcomes(report).values()) == {"failed", "not checked"}


def test_no_record_at_all_is_a_failure(job: SyntheticJob) -> None:
    manifest = manifest_of(job.leaves())
    assert_fails(run(job, [], manifest), "records", 0)


def test_every_flipped_byte_of_the_leaves_is_noticed(tmp_path: Path) -> None:
    job = make_job(crash=False)
    end = {"state": "cancelled", "error": None, "steps": 1, "trained_tokens": 11}
    job.records[4:] = [Record("job.end", end, 1, 1)]
    leaves = job.leaves()
    lines = b"".join(leaf + b"\n" for leaf in leaves)
    manifest = manifest_of(leaves)
    assert run(job, lines.splitlines(), manifest).ok
    for position in range(len(lines)):
        flipped = bytearray(lines)
        flipped[position] ^= 1 << position % 8
        records = bytes(flipped).split(b"\n")
        report = run(job, records[:-1] if not records[-1] else records, manifest)
        assert not report.ok, position


# --- bundles ----------------------------------------------------------------------------------------------


def test_a_bundle_that_cannot_be_read_is_a_report(tmp_path: Path) -> None:
    report = verify.verify_bundle(tmp_path / "absent.zip")
    assert_fails(report, "records", None, "cannot be read")
    (line,) = report.lines()
    assert line.startswith("FAILED: this is no evidence bundle that can be read: absent.zip cannot be read")
    canonical_bytes(report.to_dict())


def test_a_bundle_damaged_anywhere_never_raises_and_never_passes_changed_records(
    job: SyntheticJob, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    write_bundle(buffer, job=JOB, leaves=job.leaves(), risk_table=job.table)
    whole = buffer.getvalue()
    path = tmp_path / "evidence.zip"
    rng = random.Random(1)  # noqa: S311
    failed = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 4])):
            # Half of the hits go where the zip's own structure lies, at the end.
            start = rng.choice([0, len(whole) - 300])
            damaged[rng.randrange(start, len(whole))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.randrange(len(whole))] if rng.random() < 0.1 else damaged)
        report = verify.verify_bundle(path)
        failed += not report.ok
        if report.ok:
            # A byte of the zip that means nothing, such as a time stamp; what was verified is unchanged.
            assert report.root == manifest_of(job.leaves())["root"]
    assert failed > 250
