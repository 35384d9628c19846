"""Fault 10: a disk that is full, fails or may not be written, under checkpoints, the database and uploads."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app import failpoints
from app.database import read_only
from app.work.fair_queue import find_next
from tests.faults.checks import end_check, list_leftovers
from tests.faults.installation import (
    EVERY_STEP,
    Installation,
    Template,
    desk,
    installed,
    let_go_on,
    let_stop,
    on_sqlite,
)
from worker.miniature.corpus import training_rows

ROWS = training_rows("clean", n=12)
"""A file that nobody uses."""
WAITING = frozenset({"paused", "queued"})
MIB = 1024 * 1024

pytestmark = on_sqlite


@contextmanager
def mounted(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Put a file system of its own, in memory, at a folder. Skips where this user may not."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "tmpfs", str(folder)]
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily: a log file may still be open, and what was mounted goes with the last one.
        subprocess.run([shutil.which("umount") or "umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write a file until the file system is full, and return it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 4096):
            try:
                while True:
                    file.write(os.urandom(size))
            except OSError:
                continue
    return filler


def go_on(installation: Installation, job_id: str) -> None:
    """Resume a job that has paused by itself, and train it to its end."""
    installation.wait(lambda: state_of(installation, job_id) in WAITING, f"{job_id} without an owner")
    if state_of(installation, job_id) == "paused":
        assert installation.command(job_id, "resume").status_code == 200
    installation.finish(job_id)


def state_of(installation: Installation, job_id: str) -> str:
    """Return where a job stands."""
    return str(installation.work(job_id).state)


FAULTS = (
    # The second of the six files of the third checkpoint, and the third checkpoint itself.
    "checkpoint.after_file=ENOSPC@14",
    "checkpoint.before_rename=EIO@3",
    "checkpoint.after_rename=EIO@3",
    "step.before_commit=ENOSPC@3",
    # The adapter at the end of an epoch.
    "storage.before_rename=ENOSPC",
)


def test_errors_of_the_disk_cost_a_job_waits_and_nothing_else(
    installation: Installation, reference: bytes
) -> None:
    job_id = installation.submit(**EVERY_STEP)
    for fault in FAULTS:
        before = installation.work(job_id)
        installation.run_trainer(fault)
        work = installation.work(job_id)
        assert work.state in WAITING, installation.read_log()
        assert not list_leftovers(installation)
        if work.state == "paused":
            assert "ENOSPC" in fault
            assert "on the machine" in installation.job(job_id)["safety"]["pause_reason"]
            assert installation.command(job_id, "resume").status_code == 200
        else:
            # Nothing was at fault with the job, so that this is no attempt without progress. Progress forgets earlier faults.
            assert 1 <= work.infrastructure_failures <= before.infrastructure_failures + 1
            assert work.attempts_without_progress == 0
            installation.wait(lambda: is_due(installation, job_id), "the end of the wait")
    installation.finish(job_id)
    end_check(installation, job_id, reference=reference)


def is_due(installation: Installation, job_id: str) -> bool:
    """Say whether a job that was postponed may be claimed again."""
    with read_only(installation.database) as session:
        found = find_next(session, installation.settings, "gpu")
    return found is not None and found.work_id == job_id


def test_an_upload_that_the_disk_refuses_is_answered_and_leaves_nothing(installation: Installation) -> None:
    try:
        for error, status in (("ENOSPC", 507), ("EIO", 503)):
            failpoints.arm(f"storage.before_rename={error}")
            refused = installation.send_file(ROWS)
            assert (refused.status_code, "nothing was kept" in refused.json()["error"]["message"]) == (
                status,
                True,
            )
            assert not list_leftovers(installation)
    finally:
        failpoints.arm("")
    installation.upload(ROWS)


def test_a_disk_that_is_full_stops_everything_and_loses_nothing(
    template: Template, tmp_path: Path, reference: bytes
) -> None:
    with (
        mounted(tmp_path / "disk", 64 * MIB) as disk,
        installed(template, disk, disk_reserve_bytes=0) as installation,
        desk(installation),
    ):
        job_id = installation.submit()
        trainer = installation.start_trainer("step.after_commit=stop@8")
        let_stop(installation, trainer)
        # Database, log, checkpoints and files are all on it.
        filler = fill(disk)
        let_go_on(trainer)
        refused = installation.send_file(ROWS)
        assert refused.status_code in (503, 507), refused.text
        trainer.join(120)
        assert trainer.exitcode is not None, installation.read_log()
        assert state_of(installation, job_id) != "failed"
        filler.unlink()
        go_on(installation, job_id)
        end_check(installation, job_id, reference=reference)
        installation.upload(ROWS)


def test_a_storage_that_becomes_read_only_is_waited_for(
    template: Template, tmp_path: Path, reference: bytes
) -> None:
    with (
        mounted(tmp_path / "storage", 64 * MIB) as disk,
        installed(template, tmp_path, disk_reserve_bytes=0, storage_dir=disk) as installation,
        desk(installation),
    ):
        shutil.copytree(template.home / "storage", disk, dirs_exist_ok=True)
        job_id = installation.submit()
        trainer = installation.start_trainer("step.after_commit=stop@8")
        let_stop(installation, trainer)
        remount(disk, "ro", installation)
        let_go_on(trainer)
        trainer.join(120)
        assert trainer.exitcode is not None, installation.read_log()
        work = installation.work(job_id)
        assert (work.state, work.infrastructure_failures) == ("queued", 1)
        refused = installation.send_file(ROWS)
        assert refused.status_code == 503, refused.text
        assert installation.request("GET", "/readyz", timeout=30).status_code == 503
        remount(disk, "rw", installation)
        installation.finish(job_id)
        end_check(installation, job_id, reference=reference)


def remount(disk: Path, how: str, installation: Installation) -> None:
    """Let a file system be written or not; what is being written just now is waited for."""
    command = ["mount", "-o", f"remount,{how}", str(disk)]
    installation.wait(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, how)


@pytest.mark.short
def test_a_process_that_may_write_no_large_file_any_more_loses_its_attempt_alone(
    template: Template, tmp_path: Path, reference: bytes
) -> None:
    with installed(template, tmp_path) as installation, desk(installation):
        job_id = installation.submit()
        trainer = installation.start_trainer("step.after_commit=stop@8")
        let_stop(installation, trainer)
        # The database is longer than this by now, and so is a checkpoint: nothing that it records can be kept.
        assert trainer.pid is not None
        resource.prlimit(trainer.pid, resource.RLIMIT_FSIZE, (32_768, 32_768))
        let_go_on(trainer)
        trainer.join(120)
        assert trainer.exitcode is not None, installation.read_log()
        go_on(installation, job_id)
        end_check(installation, job_id, reference=reference)
        assert installation.work(job_id).attempt >= 2
