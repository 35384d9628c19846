"""From whose adapter a job went on, checked against the bundle of that job."""

import copy
from pathlib import Path
from typing import Any

import pytest

from app.domain.bundle import write_bundle
from app.domain.report import Report
from app.domain.verify import verify_bundle
from tests.unit.app.domain.synthetic_job import JOB, Record, SyntheticJob, assert_fails, outcomes
from tests.unit.app.domain.synthetic_run import make_run

PUBLISHED = {"job": JOB, "step": 8, "adapter_sha256": "7" * 64}


def make_child(parent: dict[str, Any] | None) -> SyntheticJob:
    """Make a run that went on from an adapter."""
    job = make_run()
    job.records[0].body["parent"] = parent
    return job


def verify(folder: Path, child: SyntheticJob, parent: SyntheticJob | None = None) -> Report:
    """Verify a job, and with it the job that it went on from."""
    paths = [folder / "child.zip", folder / "parent.zip"]
    for path, job in zip(paths, (child, parent), strict=True):
        if job is not None:
            with path.open("wb") as file:
                write_bundle(file, job=JOB, leaves=job.leaves(), risk_table=job.table)
    return verify_bundle(paths[0], parent=paths[1] if parent else None)


def test_a_generation_fits_the_one_before(tmp_path: Path) -> None:
    report = verify(tmp_path, make_child(PUBLISHED), make_run())
    assert report.ok, report.lines()
    assert outcomes(report)["lineage"] == "ok"
    lineage = next(check for check in report.checks if check.name == "lineage")
    assert lineage.detail.startswith(f"the job went on from the adapter of {JOB} after step 8")


def test_a_generation_may_begin_at_a_checkpoint(tmp_path: Path) -> None:
    parent = make_run()
    checkpoint = parent.records[parent.find("ckpt")]
    checkpoint.version = 2
    checkpoint.body["adapter_sha256"] = "8" * 64
    child = make_child({"job": JOB, "step": 2, "adapter_sha256": "8" * 64})
    report = verify(tmp_path, child, parent)
    assert report.ok, report.lines()
    assert outcomes(report)["lineage"] == "ok"


def test_without_the_parents_bundle_it_is_not_checked(tmp_path: Path) -> None:
    report = verify(tmp_path, make_child(PUBLISHED))
    assert (report.ok, outcomes(report)["lineage"]) == (True, "not checked")


@pytest.mark.parametrize("child", [make_run(), make_child(None)])
def test_a_first_generation_has_no_parent(tmp_path: Path, child: SyntheticJob) -> None:
    report = verify(tmp_path, child)
    assert (report.ok, outcomes(report)["lineage"]) == (True, "ok")
    assert_fails(verify(tmp_path, child, make_run()), "lineage", None, "began with a fresh adapter")


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"job": "ftjob-other"}, f"the bundle is that of {JOB}"),
        ({"step": 7}, "no record of that job has"),
        ({"adapter_sha256": "0" * 64}, "no record of that job has"),
    ],
)
def test_another_adapter_than_the_parents_is_found(
    tmp_path: Path, change: dict[str, Any], detail: str
) -> None:
    assert_fails(verify(tmp_path, make_child(PUBLISHED | change), make_run()), "lineage", None, detail)


def test_a_checkpoint_that_was_thrown_away_is_no_parent(tmp_path: Path) -> None:
    parent = make_run()
    thrown_away = copy.deepcopy(parent.records[parent.find("ckpt")])
    thrown_away.version = 2
    thrown_away.body |= {"step": 4, "adapter_sha256": "8" * 64}
    resume = parent.find("job.resume")
    found = {"step": 4, "sha256": thrown_away.body["sha256"], "why": "changed"}
    parent.records[resume:resume] = [thrown_away, Record("ckpt.invalid", found, 2, 3)]
    child = make_child({"job": JOB, "step": 4, "adapter_sha256": "8" * 64})
    assert_fails(verify(tmp_path, child, parent), "lineage", None, "no record of that job has")


def test_a_parent_that_does_not_verify_proves_nothing(tmp_path: Path) -> None:
    parent = make_run()
    parent.records[parent.find("step")].body["beta_max"] = 0.0
    report = verify(tmp_path, make_child(PUBLISHED), parent)
    assert_fails(report, "lineage", None, "the parent's bundle fails the check 'control law'")


def test_a_parent_that_cannot_be_read_proves_nothing(tmp_path: Path) -> None:
    verify(tmp_path, make_child(PUBLISHED))
    (tmp_path / "parent.zip").write_bytes(b"nonsense")
    report = verify_bundle(tmp_path / "child.zip", parent=tmp_path / "parent.zip")
    assert_fails(report, "lineage", None, "the parent's bundle fails the check 'records'")


@pytest.mark.parametrize("name", ["lora_r", "base_model_sha256"])
def test_base_model_and_shape_stay_in_every_generation(tmp_path: Path, name: str) -> None:
    child, parent = make_child(PUBLISHED), make_run()
    if name == "lora_r":
        for record in parent.records:
            if record.kind in ("job.start", "job.resume"):
                record.body["spec"] = record.body["spec"] | {"lora_r": 8}
    else:
        parent.records[0].body[name] = "0" * 64
    assert_fails(verify(tmp_path, child, parent), "lineage", None, f"{name} is ")
