"""Fault 12: clocks jump, and clocks disagree. Leases are judged by the database's clock, and that one jumps, too."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.faults.checks import end_check
from tests.faults.installation import ENDED, Installation, Template, desk, epochs, installed, reference_run
from tests.faults.servers import PostgreSQL

DAY_S = 86_400
HOUR_S = 3600
SOURCE = Path(__file__).with_name("shifted_clock.c")
YEAR_2038 = datetime(2038, 1, 19, 3, 14, 6, tzinfo=UTC)
"""Two seconds before 31 bits of seconds since 1970 are full."""
SLOWLY = "step.before_commit=sleep:0.2@*"
"""So that a job outlasts all that happens to its clock."""
LONG = epochs(4)
"""A job of 40 steps, likewise."""


class Clock:
    """The wall clock of every process that is started within `shown`; what waits, waits by the machine's."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("there is no C compiler (cc) to build a clock with")
        self._library, self._file = folder / "shifted_clock.so", folder / "clock"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", self._library, SOURCE], check=True)
        self.shift(0)

    def shift(self, seconds: float) -> None:
        """Set it so far ahead of the machine's, or behind."""
        aside = self._file.with_suffix(".new")
        aside.write_text(f"{seconds:.0f}\n")
        # Whoever reads it may be another user, as PostgreSQL is.
        aside.chmod(0o644)
        aside.replace(self._file)

    def set(self, time: datetime) -> None:
        """Set it to a time, from which it goes on."""
        self.shift((time - datetime.now(UTC)).total_seconds())

    @contextmanager
    def shown(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Give this clock to the processes that start now, and to those that they start."""
        with monkeypatch.context() as context:
            context.setenv("LD_PRELOAD", str(self._library))
            context.setenv("TETHER_TEST_CLOCK", str(self._file))
            yield


def steps_of(leaves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of steps."""
    return [leaf for leaf in leaves if leaf["t"].startswith("tether.step/")]


def test_every_clock_jumps_by_days_and_past_2038_while_a_job_runs(
    sqlite_template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = reference_run(sqlite_template, tmp_path, **LONG)
    clock = Clock(tmp_path)
    with installed(sqlite_template, tmp_path) as installation:
        with clock.shown(monkeypatch):
            installation.start_service(SLOWLY)
        job_id = installation.submit(**LONG)
        done = installation.wait_for_step(job_id, 4)
        for shift_s in (DAY_S, -DAY_S):
            clock.shift(shift_s)
            done = installation.wait_for_step(job_id, done + 6)
        # Set back once more, in the middle of a lease whose owner dies with everybody who could give its work back.
        clock.shift(-3 * DAY_S)
        kill_worker(installation)
        installation.wait_for_step(job_id, done + 6)
        clock.set(YEAR_2038)
        installation.wait(lambda: str(installation.work(job_id).state) in ENDED, "the end")
        assert installation.job(job_id)["status"] == "succeeded"
        check_at_the_end(installation, job_id, reference)
        times = [leaf["ts_db"] for leaf in steps_of(installation.leaves(job_id))]
        assert max(times) > 2**31 * 1000 > min(times)
        assert sum(later < earlier for earlier, later in pairwise(times)) >= 2


def kill_worker(installation: Installation) -> None:
    """Kill the worker of the queue gpu; its trainer goes with it."""
    (worker,) = installation.processes("worker.celery_app", "gpu")
    os.kill(worker, signal.SIGKILL)


@pytest.fixture
def databases_clock(
    postgresql_server: PostgreSQL, postgresql_template: Template, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Clock]:
    """Start PostgreSQL anew with a clock of its own; after the test it has the machine's again."""
    clock = Clock(postgresql_server.folder)
    with clock.shown(monkeypatch):
        postgresql_server.restart()
    try:
        yield clock
    finally:
        postgresql_server.restart()


def test_workers_whose_clocks_are_hours_apart_share_a_job_and_the_databases_clock_jumps(
    postgresql_template: Template,
    databases_clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = reference_run(postgresql_template, tmp_path)
    with installed(postgresql_template, tmp_path) as installation, desk(installation):
        job_id = installation.submit()
        for name, ahead_s in (("fast", HOUR_S), ("slow", -HOUR_S)):
            (tmp_path / name).mkdir()
            clock = Clock(tmp_path / name)
            clock.shift(ahead_s)
            with clock.shown(monkeypatch):
                worker = installation.start_part("worker", "--queue", "gpu", failpoints=SLOWLY)
            done = installation.wait_for_step(job_id, len(steps_of(installation.leaves(job_id))) + 4)
            if name == "fast":
                databases_clock.shift(DAY_S)
                installation.wait_for_step(job_id, done + 6)
                # Nobody is left to give the work back; its lease was granted a day ahead of what the clock says now.
                databases_clock.shift(0)
                os.killpg(worker.pid, signal.SIGKILL)
        installation.wait(lambda: str(installation.work(job_id).state) in ENDED, "the end")
        check_at_the_end(installation, job_id, reference)
        apart_s = [
            (leaf["ts_worker"] - leaf["ts_db"]) / 1000 for leaf in steps_of(installation.leaves(job_id))
        ]
        assert max(apart_s) > 0.9 * HOUR_S
        assert min(apart_s) < -0.9 * HOUR_S


def check_at_the_end(installation: Installation, job_id: str, reference: bytes) -> None:
    """Do the end check once the workers, which wait for the next job, have no process at work."""
    installation.wait(lambda: not installation.processes("worker.process"), "the last process to end")
    end_check(installation, job_id, reference=reference)
