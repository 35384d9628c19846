"""Rows that their owner holds are compared with their commitments, and only with the dataset's key."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from app.domain.bundle import write_bundle
from app.domain.canonical import canonical_bytes
from app.domain.report import EXIT_CODES, Report
from app.domain.verify import verify_bundle
from app.domain.verify_command import UsageError, run
from tests.unit.app.domain.synthetic_job import JOB, SyntheticJob, outcomes

ON_RECORD = (0, 1, 2, 3, 5, 6, 7)


def tokens(row: int, **changes: Any) -> dict[str, Any]:
    """Return a row as `make_table` commits to it."""
    return {"row": row, "input_ids": [row, 1, 2], "loss_mask": [0, 1, 1]} | changes


@pytest.fixture
def evidence(job: SyntheticJob, tmp_path: Path) -> Path:
    path = tmp_path / "evidence.zip"
    with path.open("wb") as file:
        write_bundle(file, job=JOB, leaves=job.leaves(), risk_table=job.table)
    return path


def check(evidence: Path, rows: Iterable[dict[str, Any] | bytes], key: bytes | None = b"key") -> Report:
    path = evidence.with_name("rows.jsonl")
    lines = (row if isinstance(row, bytes) else canonical_bytes(row) for row in rows)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return verify_bundle(evidence, rows=path, dataset_key=key)


def detail_of(report: Report) -> str:
    return next(check.detail for check in report.checks if check.name == "rows")


def test_every_row_is_the_one_on_record(evidence: Path) -> None:
    report = check(evidence, map(tokens, ON_RECORD))
    assert report.ok, report.lines()
    assert detail_of(report).startswith("7 of 7 rows on record")


def test_one_row_can_be_shown_without_the_others(evidence: Path) -> None:
    report = check(evidence, [tokens(5)])
    assert outcomes(report)["rows"] == "ok"
    assert detail_of(report).startswith("1 of 7 rows on record")


def test_without_the_key_nothing_is_checked_whatever_the_rows_are(evidence: Path) -> None:
    """So it is for ever once a dataset was erased."""
    for rows in (map(tokens, ON_RECORD), [tokens(0, input_ids=[9, 9, 9])]):
        report = check(evidence, rows, key=None)
        assert outcomes(report)["rows"] == "not checked"
        assert "where the dataset was erased, nobody has it" in detail_of(report)


def test_without_rows_nothing_is_checked(evidence: Path) -> None:
    assert outcomes(verify_bundle(evidence, dataset_key=b"key"))["rows"] == "not checked"


@pytest.mark.parametrize(
    ("rows", "first_bad", "words"),
    [
        ([tokens(0), tokens(1, input_ids=[1, 1, 3])], 1, "row 1 has the commitment"),
        ([tokens(0, loss_mask=[1, 1, 1])], 0, "row 0 has the commitment"),
        ([tokens(4)], 0, "row 4 is not in the risk table"),
        ([tokens(0), tokens(0)], 1, "stands twice"),
        ([tokens(0, loss_mask=[1, 1])], 0, "3 tokens with a loss mask of 2"),
        ([tokens(0, text="hello")], 0, "unknown field"),
        ([tokens(0, loss_mask=[0, 1, 2])], 0, "one of 0, 1"),
        ([b"[" * 9999], 0, "nested"),
        ([b"\xff"], 0, "UTF-8"),
        ([], None, "has no row"),
    ],
)
def test_a_row_that_is_not_the_one_on_record_is_named(
    evidence: Path, rows: list[Any], first_bad: int | None, words: str
) -> None:
    report = check(evidence, rows)
    failed = [each for each in report.checks if each.outcome == "failed"]
    assert [(each.name, each.first_bad) for each in failed] == [("rows", first_bad)], report.lines()
    assert words in failed[0].detail
    assert report.exit_code == EXIT_CODES["rows"] == 33


def test_another_key_fits_no_row(evidence: Path) -> None:
    report = check(evidence, [tokens(0)], key=b"another")
    assert "or another dataset's key" in detail_of(report)
    assert not report.ok


def test_the_command_takes_rows_and_a_key_in_hex(evidence: Path, tmp_path: Path) -> None:
    rows, key = tmp_path / "rows.jsonl", tmp_path / "key.hex"
    rows.write_bytes(canonical_bytes(tokens(0)) + b"\n")
    key.write_text("ab" * 32 + "\n")
    code, text = run(bundle=evidence, rows=rows, key=key)
    assert code == EXIT_CODES["rows"], "it is the key of another dataset"
    assert "another dataset's key" in text
    key.write_text("ab")
    with pytest.raises(UsageError, match="64 hex digits"):
        run(bundle=evidence, rows=rows, key=key)
