"""Reasons to fail that the tests of each check leave out: rare lies, and bounds of what a verifier keeps in memory."""

import hashlib
import io
import lzma
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from app.cli.canary import read_canary
from app.domain import checks_training, verification, verify
from app.domain.bundle import LogProof, write_bundle
from app.domain.canonical import canonical_bytes, parse_canonical
from app.domain.merkle import leaf_hash, root
from app.errors import InvalidRequest
from tests.unit.app.domain.synthetic_job import (
    CONSTANT,
    JOB,
    SAFETY,
    SyntheticJob,
    assert_fails,
    make_job,
    run,
)
from tests.unit.app.domain.synthetic_run import make_run
from tests.unit.app.domain.test_checks_log import Log, assert_only, check
from tests.unit.app.domain.test_checks_provenance import pack, publish


def test_a_file_that_stands_twice_in_the_adapter(job: SyntheticJob, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(buffer, "w") as archive:
        for content in (b"good", b"bad"):
            archive.writestr(zipfile.ZipInfo("adapter_model.safetensors"), content)
    adapter = tmp_path / "adapter.zip"
    adapter.write_bytes(buffer.getvalue())
    published = job.records[job.find("adapter.published")].body
    published |= {
        "zip_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "bytes": len(buffer.getvalue()),
        "files": {"adapter_model.safetensors": hashlib.sha256(b"bad").hexdigest()},
    }
    assert_fails(run(job, adapter=adapter), "adapter", None, "stands twice in the zip")


@pytest.mark.parametrize("lie", ["long", "packed", "hidden", "lzma"])
def test_an_adapter_whose_directory_would_fill_the_memory(
    job: SyntheticJob, tmp_path: Path, lie: str
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(16):
            info = zipfile.ZipInfo(f"file-{number}")
            info.comment = b"c" * 65_535
            archive.writestr(info, b"")
    zipped = bytearray(buffer.getvalue())
    if lie == "packed":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("file", b"x" * 5000)
        zipped = bytearray(buffer.getvalue())
        at = zipped.rfind(b"PK\x01\x02")
        zipped[at + 24 : at + 28] = (10).to_bytes(4, "little")
    elif lie == "hidden":
        zipped = hide_directory(zipped)
    elif lie == "lzma":
        zipped = bytearray(damaged_lzma("adapter_model.safetensors"))
    adapter = tmp_path / "adapter.zip"
    adapter.write_bytes(zipped)
    published = job.records[job.find("adapter.published")].body
    published |= {"zip_sha256": hashlib.sha256(zipped).hexdigest(), "bytes": len(zipped)}
    said = {
        "long": "its directory has",
        "packed": "5000 bytes packed, and 10 unpacked",
        "hidden": "its directory has",
        "lzma": "'adapter_model.safetensors' is packed by the unknown method 14",
    }
    assert_fails(run(job, adapter=adapter), "adapter", None, said[lie])


def hide_directory(zipped: bytearray) -> bytearray:
    """Return a zip whose ZIP64 end record has the length of its directory, with a short one in the comment."""
    at = len(zipped) - 22
    length, offset = struct.unpack_from("<2L", zipped, at + 12)
    wide = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 16, 16, length, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    decoy = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 46, 0)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 16, 16, 46, 0, len(decoy))
    return zipped[:at] + wide + locator + end + decoy


def damaged_lzma(name: str) -> bytes:
    """Return a zip of one file, for whose bytes Python raises what no other damage does."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr(name, b"weights" * 100)
    zipped = bytearray(buffer.getvalue())
    at = 30 + len(name) + 9
    zipped[at : at + 8] = b"\xff" * 8
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive, pytest.raises(lzma.LZMAError):
        archive.read(name)
    return bytes(zipped)


def test_the_zip_of_a_checkpoint_is_opened_within_bounds(tmp_path: Path) -> None:
    job = make_run(version=4)
    publish(job, pack())
    checkpoint = job.records[job.find("ckpt")]
    checkpoint.version = 2
    adapter = tmp_path / "adapter.zip"
    for zipped, said in (
        (damaged_lzma("tether.json"), "unknown method 14"),
        (b"PK", "not end as a zip does"),
    ):
        adapter.write_bytes(zipped)
        checkpoint.body["adapter_sha256"] = hashlib.sha256(zipped).hexdigest()
        assert_fails(run(job, adapter=adapter), "provenance", None, said)
        with pytest.raises(InvalidRequest, match=said):
            read_canary(adapter)


def test_a_signed_form_without_a_head(job: SyntheticJob, tmp_path: Path) -> None:
    proof = Log(job).prove()
    assert_only(check(job, LogProof(proof.checkpoint, []), tmp_path), "heads", "no head of this job under it")


def change_rows(job: SyntheticJob, **changes: Any) -> None:
    """Change fields of the table's last row, and let the record agree."""
    assert job.table is not None
    entry = parse_canonical(job.table[-1])
    assert isinstance(entry, dict)
    job.table[-1] = canonical_bytes(entry | changes)
    job.records[job.find("risk.table")].body["root"] = root(map(leaf_hash, job.table)).hex()


def test_a_row_beyond_the_end_of_the_file(job: SyntheticJob) -> None:
    change_rows(job, row=8)
    assert_fails(run(job), "risk table", 2, "names row 8 of a file of 8 rows")


def test_a_success_without_a_step() -> None:
    job = make_job(crash=False)
    published, end = (job.records[job.find(kind)] for kind in ("adapter.published", "job.end"))
    published.body["step"] = 0
    end.body |= {"steps": 0, "trained_tokens": 0}
    job.records = [*job.records[:3], published, end]
    assert_fails(run(job), "end", 4, "succeeded without a step")


def test_a_critic_with_one_point() -> None:
    job = make_job()
    for kind in ("job.created", "risk.table"):
        body = job.records[job.find(kind)].body
        (body["critic"] if kind == "job.created" else body)["high"] = None
    assert_fails(run(job), "risk table", 2, "one of the critic's two points is missing")


def test_a_reading_that_no_critic_can_have_made() -> None:
    safety = SAFETY | {"critic": {"type": "constant", "s": 0.3}}
    job = make_job(safety, CONSTANT)
    created = job.records[job.find("job.created")].body
    start = job.records[job.find("job.start")].body
    judge = {"type": "judge", "votes": 1}
    start["spec"]["safety"]["critic"] = created["spec"]["safety"]["critic"] = judge
    created["spec_sha256"] = hashlib.sha256(canonical_bytes(created["spec"])).hexdigest()
    change_rows(job, status="ok", log_odds=0.5)
    assert job.table is not None
    job.table[:] = job.table[-1:]
    body = job.records[job.find("risk.table")].body
    body |= {"rows": 1, "dropped": 7, "root": root(map(leaf_hash, job.table)).hex()}
    assert_fails(run(job), "risk table", 0, "the critic has no points to read it by")


def test_a_threshold_that_was_left_to_no_critic() -> None:
    job = make_run()
    created = job.records[0].body
    created["critic"] = None
    job.records[job.find("risk.table")].body |= {"critic_sha256": None, "fitted": []}
    for record in job.records:
        if record.kind in ("job.created", "job.start", "job.resume"):
            record.body["spec"]["safety"]["critic"] = None
    created["spec_sha256"] = hashlib.sha256(canonical_bytes(created["spec"])).hexdigest()
    assert_fails(run(job), "risk table", 2, "left to the critic, but job.created has none")


def test_a_critic_of_parts_that_are_none() -> None:
    job = make_run(critic={"type": "judge", "votes": 3})
    created = job.records[0].body
    parts = [job.records[1].body["spec"]["safety"]["critic"]]
    for record in job.records:
        if record.kind in ("job.created", "job.start", "job.resume"):
            critic = {"type": "combined", "rule": "weighted", "critics": parts, "weights": None}
            record.body["spec"]["safety"] |= {"critic": critic, "threshold": 0.5}
    created["spec_sha256"] = hashlib.sha256(canonical_bytes(created["spec"])).hexdigest()
    assert_fails(run(job), "risk table", 0, "the spec's critic cannot be read")


@pytest.mark.parametrize(
    ("module", "bound", "value", "first_bad", "said"),
    [
        (verify, "MAX_RECORDS", 5, 5, "more than 5 records"),
        (verification, "MAX_KEPT", 6, 5, "name more than 6 rows"),
    ],
)
def test_more_records_than_a_verifier_keeps(
    job: SyntheticJob,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    bound: str,
    value: int,
    first_bad: int,
    said: str,
) -> None:
    monkeypatch.setattr(module, bound, value)
    assert_fails(run(job), "records", first_bad, said)


def test_more_rows_than_a_verifier_keeps(
    job: SyntheticJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks_training, "MAX_TABLE_ROWS", 3)
    assert_fails(run(job), "risk table", None, "has more than 3 lines")


def test_what_nobody_thought_of_fails_the_check_and_ends_with_a_verdict(
    job: SyntheticJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A check that stumbles is a defect, and a bundle that makes it stumble must not pass by it."""

    def stumble(_: object) -> str:
        raise KeyError("s")

    monkeypatch.setitem(verify._AT_END, "coverage", stumble)
    path = tmp_path / "evidence.zip"
    with path.open("wb") as file:
        write_bundle(file, job=JOB, leaves=job.leaves(), risk_table=job.table)
    report = verify.verify_bundle(path)
    assert_fails(report, "coverage", len(job.records) - 1, verify.STUMBLED)
