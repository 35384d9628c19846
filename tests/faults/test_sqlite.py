"""Fault 8: SQLite is locked by somebody else, and copied while it is written to."""

import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from app.domain.ledger import kind_of, parse_leaf
from tests.faults.checks import check_record, end_check
from tests.faults.installation import SLOWLY, Installation, on_sqlite
from tests.support import copy_database

pytestmark = on_sqlite


@pytest.mark.parametrize("held_s", [1.0, 6.0], ids=["shorter-than-the-lease", "longer-than-the-lease"])
def test_a_lock_that_another_process_holds(
    installation: Installation, reference: bytes, held_s: float
) -> None:
    job_id = installation.submit()
    trainer = installation.start_trainer(SLOWLY, lease_s=4)
    installation.wait_for_step(job_id, 6)
    other = sqlite3.connect(installation.home / "tether.db", isolation_level=None, timeout=30)
    other.execute("BEGIN IMMEDIATE")
    time.sleep(held_s)
    other.execute("ROLLBACK")
    other.close()
    trainer.join()
    installation.finish(job_id)
    end_check(installation, job_id, reference=reference)


def test_copies_taken_while_it_is_written_to_are_whole_or_noticed(
    installation: Installation, tmp_path: Path
) -> None:
    """SQLite's own backup is whole, whenever it is taken. A copy of the files is, or SQLite or the record says that it is not."""
    job_id = installation.submit()
    trainer = installation.start_trainer(SLOWLY)
    installation.wait_for_step(job_id, 2)
    taken = 0
    while trainer.is_alive() and taken < 12:
        taken += 1
        live = installation.home / "tether.db"
        copy_database(live, tmp_path / f"backup-{taken}.db")
        copy_files(live, tmp_path / f"copy-{taken}.db")
    trainer.join()
    assert taken >= 3
    installation.finish(job_id)
    final = installation.leaves(job_id)
    lengths = []
    for each in range(1, taken + 1):
        record = read_record(tmp_path / f"backup-{each}.db", job_id)
        assert record == final[: len(record)]
        lengths.append(len(record))
        try:
            record = read_record(tmp_path / f"copy-{each}.db", job_id)
        except (sqlite3.DatabaseError, AssertionError) as noticed:
            print(f"copy {each}: {noticed}")
            continue
        assert record == final[: len(record)], f"copy {each} looks whole and is not"
    assert lengths == sorted(lengths)
    end_check(installation, job_id)


def copy_files(source: Path, target: Path) -> None:
    """Copy the files, as somebody does who has not read docs/mlops.md."""
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{source}{suffix}", f"{target}{suffix}")


def read_record(path: Path, job_id: str) -> list[dict[str, Any]]:
    """Return the records of a job in a copy. Raises where SQLite finds it damaged, or the record is not whole."""
    database = sqlite3.connect(path)
    try:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = database.execute(
            "SELECT leaf FROM ledger_leaves WHERE work_id = ? ORDER BY seq", (job_id,)
        ).fetchall()
        (size,) = database.execute("SELECT ledger_size FROM work WHERE id = ?", (job_id,)).fetchone()
    finally:
        database.close()
    leaves = [parse_leaf(leaf) for (leaf,) in rows]
    assert len(leaves) == size
    check_record(leaves, ended=kind_of(leaves[-1]) == "job.end")
    return leaves
