"""A record that is whole but untrue fails the check that is there for it, though all was rehashed."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from app.domain import ledger, risk_table
from app.domain.canonical import canonical_bytes
from app.domain.merkle import leaf_hash, root
from tests.unit.app.domain.synthetic_job import (
    ADAPTER,
    CONSTANT,
    CRITIC,
    SAFETY,
    SyntheticJob,
    assert_fails,
    first_version,
    make_job,
    make_step,
    outcomes,
    run,
)


def test_a_penalty_that_is_always_zero_is_no_protection() -> None:
    report = run(make_job({"method": "fixed_kl", "beta": 0, "critic": None}))
    assert report.ok
    assert "UNPROTECTED" in report.protection


# --- control law and risk table ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["risk_mean", "risk_max", "alpha_mean", "alpha_min", "beta_mean", "beta_max", "floor"]
)
def test_a_changed_control_number_does_not_replay(job: SyntheticJob, name: str) -> None:
    seq = job.find("step", 1)
    value = job.records[seq].body[name]
    # The last bit of a double is enough.
    job.records[seq].body[name] = 1.0 if name == "floor" else value + (-(2**-53) if value > 0.5 else 2**-53)
    assert_fails(run(job), "control law", seq)


@pytest.mark.parametrize(
    ("name", "value"), [("critic_sha256", "0" * 64), ("policy_sha256", "0" * 64), ("risk_max", None)]
)
def test_a_step_under_another_critic_or_policy_fails(job: SyntheticJob, name: str, value: object) -> None:
    seq = job.find("step", 2)
    job.records[seq].body[name] = value
    assert_fails(run(job), "control law", seq, name)


def test_a_superseded_step_is_replayed_too(job: SyntheticJob) -> None:
    seq = job.find("step", 4)
    job.records[seq].body["beta_max"] = 0.5
    assert_fails(run(job), "control law", seq)


def test_a_row_outside_the_table_fails(job: SyntheticJob) -> None:
    seq = job.find("step")
    job.records[seq].body["rows"][0] = 4
    assert_fails(run(job), "control law", seq, "row 4 is not in the risk table")


@pytest.mark.parametrize(
    ("safety", "detail"),
    [
        ({"method": "magic"}, "not known"),
        ({"beta_max": 1.5}, "safety.beta_max"),
        ({"beta_min": True}, "safety.beta_min"),
        ({"threshold": None}, "safety.threshold"),
        ({"schedule": "cubic"}, "safety.schedule"),
        ({"schedule": 3}, "safety.schedule"),
        ({"scope": "world"}, "safety.scope"),
        ({"ema_decay": -0.5}, "safety.ema_decay"),
        ({"anchors": "all"}, "safety.anchors"),
        ({"anchors": {"weight": "2", "per_step": 4}}, "safety.anchors.weight"),
        ({"monitor": {"every": 0}}, "safety.monitor.every"),
        ({"beta_max": 0.9}, "replay"),
    ],
)
def test_a_spec_that_the_control_law_does_not_know_fails(
    job: SyntheticJob, safety: dict[str, Any], detail: str
) -> None:
    forge_spec(job, {"safety": SAFETY | safety})
    assert_fails(run(job), "control law", 3, detail)


def forge_spec(job: SyntheticJob, change: dict[str, Any]) -> None:
    for record in job.records:
        if "spec" in record.body:
            record.body["spec"] = record.body["spec"] | change
        if "spec_sha256" in record.body:
            record.body["spec_sha256"] = ledger.digest_of(record.body["spec"])


def forge_row(job: SyntheticJob, number: int, change: dict[str, Any], *, commit: bool = False) -> None:
    """Change one entry of the risk table; with `commit`, its leaf too."""
    assert job.table is not None
    entry = {**vars_of(job.table[number]), **change}
    job.table[number] = canonical_bytes(entry)
    if commit:
        body = job.records[job.find("risk.table")].body
        body["root"] = root(map(leaf_hash, job.table)).hex()


def vars_of(entry: bytes) -> dict[str, Any]:
    return first_version(risk_table.parse_risk_row(entry, 1))


@pytest.mark.parametrize("commit", [False, True])
@pytest.mark.parametrize(
    ("number", "change", "detail"),
    [
        (1, {"s": 0.0123}, "its record gives"),
        (1, {"s": None}, "only unmeasured rows"),
        (1, {"log_odds": -40}, "its record gives"),
        (1, {"log_odds": "NaN"}, "a number"),
        (3, {"s": 0}, "s must be 1"),
        (3, {"status": "ok"}, "have a reading"),
        (1, {"status": "failed", "log_odds": None, "s": 0}, "s must be 1"),
        (1, {"status": "constant", "log_odds": None, "s": 0}, "under this critic"),
        (1, {"status": "unmeasured", "log_odds": None, "s": None}, "under this critic"),
        (1, {"row": 0}, "comes after"),
    ],
)
def test_a_forged_row_of_the_risk_table_is_named(
    job: SyntheticJob, number: int, change: dict[str, Any], detail: str, commit: bool
) -> None:
    forge_row(job, number, change, commit=commit)
    report = run(job)
    assert_fails(report, "risk table", number, detail)
    assert next(c for c in report.checks if c.name == "risk table").first_bad_in == "risk_table.jsonl"
    assert outcomes(report)["control law"] == "not checked"


def test_a_changed_commitment_is_not_under_the_recorded_root(job: SyntheticJob) -> None:
    forge_row(job, 2, {"commitment": "0" * 64})
    assert_fails(run(job), "risk table", 2, "root")


@pytest.mark.parametrize(
    ("name", "value", "detail"),
    [
        ("rows", 6, "rows"),
        ("dropped", 0, "of the file"),
        ("root", "0" * 64, "root"),
        ("critic_sha256", "0" * 64, "created with"),
        ("critic_sha256", None, "created with"),
        ("low", -9.5, "created with"),
        ("high", None, "created with"),
        ("counts", {"ok": 7, "failed": 0, "constant": 0, "unmeasured": 0}, "counts"),
    ],
)
def test_a_forged_risk_table_record_is_named(
    job: SyntheticJob, name: str, value: object, detail: str
) -> None:
    seq = job.find("risk.table")
    job.records[seq].body[name] = value
    assert_fails(run(job), "risk table", seq, detail)


def test_a_row_dropped_from_the_table_and_its_counts_is_missed(job: SyntheticJob) -> None:
    assert job.table is not None
    del job.table[-1]
    body = job.records[job.find("risk.table")].body
    body["rows"], body["root"] = 6, root(map(leaf_hash, job.table)).hex()
    body["counts"] = body["counts"] | {"ok": 5}
    assert_fails(run(job), "risk table", job.find("risk.table"), "are not the 8 of the file")


def test_the_risk_table_and_its_record_need_each_other(job: SyntheticJob) -> None:
    table, job.table = job.table, None
    assert_fails(run(job), "risk table", job.find("risk.table"), "no risk_table.jsonl")
    assert_fails(run(SyntheticJob(job.records[:2], table)), "risk table", None, "no record commits")


def test_a_job_that_steers_by_risk_needs_a_critic() -> None:
    job = make_job({"method": "none", "critic": None}, None)
    forge_spec(job, {"safety": SAFETY})
    assert_fails(run(job), "risk table", 0, "no critic measured any")


def test_a_constant_critics_s_is_the_specs() -> None:
    job = make_job(SAFETY | {"critic": {"type": "constant", "s": 0.3}}, CONSTANT)
    forge_spec(job, {"safety": SAFETY | {"critic": {"type": "constant", "s": 0.2}}})
    assert_fails(run(job), "risk table", 0, "s 0.3; its record gives 0.2")
    forge_spec(job, {"safety": SAFETY})
    assert_fails(run(job), "risk table", 0, "no constant critic")


# --- coverage, end and files ------------------------------------------------------------------------------


def retrain(job: SyntheticJob, seq: int, rows: list[int]) -> None:
    """Forge a step with other rows so that it replays."""
    assert job.table is not None
    risks = {row.row: row.s for row in (risk_table.parse_risk_row(entry, 1) for entry in job.table)}
    body = job.records[seq].body
    job.records[seq].body = make_step(
        body["step"], body["data_epoch"], rows, risks, SAFETY, CRITIC, body["floor"]
    )


def test_a_row_trained_on_twice_is_named(job: SyntheticJob) -> None:
    seq = job.find("step", 1)
    rows = [job.records[seq - 1].body["rows"][0], *job.records[seq].body["rows"][1:]]
    retrain(job, seq, rows)
    assert_fails(run(job), "coverage", seq, f"row {rows[0]} is trained on twice")


def test_a_row_left_out_of_a_data_epoch_is_named(job: SyntheticJob) -> None:
    seq = job.find("step", 0)
    left_out, *rows = job.records[seq].body["rows"]
    retrain(job, seq, rows)
    assert_fails(run(job), "coverage", job.find("step", 2), f"row {left_out}")


def test_a_row_left_out_of_the_last_data_epoch_is_named(job: SyntheticJob) -> None:
    seq = job.find("step", 6)
    retrain(job, seq, job.records[seq].body["rows"][1:])
    assert_fails(run(job), "coverage", job.find("step", 7))


def test_a_skipped_data_epoch_and_a_wrong_number_of_them_are_named(job: SyntheticJob) -> None:
    forge_spec(job, {"n_epochs": 3})
    assert_fails(run(job), "coverage", job.find("step", 7), "the spec says 3")
    forge_spec(job, {"n_epochs": None})
    assert_fails(run(job), "coverage", job.find("step", 7), "the spec says None")
    job.records[job.find("step", 0)].body["data_epoch"] = 1
    assert_fails(run(job), "coverage", job.find("step", 0), "data epoch 1 where 0")


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"steps": 5}, "steps 5"),
        ({"trained_tokens": 1}, "trained_tokens 1"),
        ({"error": "training_failed"}, "succeeded with the error"),
        ({"state": "failed"}, "failed with the error None"),
    ],
)
def test_an_end_that_the_steps_contradict_fails(
    job: SyntheticJob, change: dict[str, Any], detail: str
) -> None:
    job.records[-1].body |= change
    assert_fails(run(job), "end", len(job.records) - 1, detail)


def test_success_needs_an_adapter_of_the_last_step(job: SyntheticJob) -> None:
    job.records[-2].body["step"] = 5
    assert_fails(run(job), "end", len(job.records) - 1, "no adapter of its last step")
    job.records.pop(-2)
    assert_fails(run(job), "end", len(job.records) - 1, "no adapter of its last step")


def test_another_adapter_or_training_file_is_noticed(job: SyntheticJob, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(ADAPTER[:-1] + b"\x01")
    assert_fails(run(job, adapter=path), "adapter", None, "SHA-256")
    assert_fails(run(job, data=path), "training file", None, "SHA-256")
    assert_fails(run(job, adapter=tmp_path), "adapter", None, "cannot be read")
    assert_fails(run(job, data=tmp_path / "absent"), "training file", None, "cannot be read")


def test_an_adapter_must_hold_the_recorded_files(job: SyntheticJob, tmp_path: Path) -> None:
    path = tmp_path / "adapter.zip"
    path.write_bytes(ADAPTER)
    job.records[-2].body["bytes"] += 1
    assert_fails(run(job, adapter=path), "adapter", None, "bytes")
    job.records[-2].body["bytes"] -= 1
    job.records[-2].body["files"]["adapter_config.json"] = "0" * 64
    assert_fails(run(job, adapter=path), "adapter", None, "'adapter_config.json'")
    del job.records[-2].body["files"]["adapter_config.json"]
    assert_fails(run(job, adapter=path), "adapter", None, "'adapter_config.json'")


@pytest.mark.parametrize("content", [b"no zip", b"PK\x05\x06" + b"\xff" * 18])
def test_an_adapter_that_is_no_zip_is_a_failed_check(
    job: SyntheticJob, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "adapter.zip"
    path.write_bytes(content)
    job.records[-2].body |= {"zip_sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert_fails(run(job, adapter=path), "adapter", None, "cannot be read")


def test_an_adapter_without_a_record_fails(job: SyntheticJob, tmp_path: Path) -> None:
    path = tmp_path / "adapter.zip"
    path.write_bytes(ADAPTER)
    job.records[:] = job.records[:8]
    assert_fails(run(job, adapter=path), "adapter", None, "none published")
