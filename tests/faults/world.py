"""A whole installation in one process, under the clocks of `virtual`: what a client, workers and repairs do to jobs.

Everything that decides is the product's: the API's functions, the reconciler, claims, leases and heartbeats, the journal,
checkpoints on disk, the publisher, the notary, the loop of releases. Only what is trained is on paper.
"""

import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sqlalchemy import select

import worker.lease
import worker.process
from app.audit.service import build_evidence
from app.auth import Caller
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.job import TERMINAL, State, WorkKind
from app.domain.training_spec import TrainingSpec
from app.domain.verify import verify_bundle
from app.errors import Conflict, NotFound, StorageUnavailable
from app.files.service import delete_file
from app.jobs import service as jobs
from app.keys.service import DEFAULT_PROJECT
from app.models.file import File
from app.models.job import Job, Step
from app.models.work import Work
from app.notary.service import Notary
from app.reconciler import reconcile
from app.serve import prepare
from app.settings import Settings
from app.work import release
from app.work.fair_queue import find_next
from tests.faults.model import Known, Model, Row
from tests.faults.paper import train, undisturbed
from tests.faults.virtual import SIGKILLED, Machine, Process, stand_ins
from tests.support import add_job, settings_in
from worker.abandoned import give_back
from worker.context import Context, Preempted

CLIENT = Caller(project_id=DEFAULT_PROJECT, key_id="key_1")
POISONED_STEP = 4


class Stage:
    """Where stories take place, one after the other: a folder, and an engine that has learnt its queries."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.settings: Settings = settings_in(
            self.home, lease_s=60, heartbeat_s=10, max_infrastructure_failures=3
        )
        prepare(self.settings)
        self.path = self.home / "tether.db"
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._empty = folder / "empty.db"
        shutil.copy(self.path, self._empty)
        self.engine = open_engine(self.settings.database_url)
        self.machine = Machine()
        self.machine.attach(self.engine)

    def clear(self) -> None:
        """Make everything as it was at the beginning."""
        self.engine.dispose()
        shutil.rmtree(self.home)
        self.home.mkdir()
        shutil.copy(self._empty, self.path)
        self.machine.begin_again()


class World:
    """The installation, the people and machines around it, and what is known of its jobs."""

    def __init__(self, stage: Stage) -> None:
        stage.clear()
        self.machine, self.settings, self.folder = stage.machine, stage.settings, stage.home
        self.knocks: list[tuple[str, str]] = []
        self.database = Database(stage.engine, self.knocks.extend)
        self.looker = sqlite3.connect(stage.path)
        self.model = Model(self.looker, self.settings)
        self.jobs, self.log = self.model.jobs, self.model.log
        self.actors: dict[str, Process] = {}
        """Processes by name, the last one of each."""
        self.buried: set[str] = set()
        """Processes whose end was seen by the one that started them, or never will be."""
        self.failing: set[str] = set()
        """Processes that cannot reach the storage."""
        self._notary: Notary | None = None
        self._stack = ExitStack()
        for name, module in stand_ins(self.machine).items():
            for target in (worker.lease, worker.process):
                if hasattr(target, name):
                    self._stack.enter_context(patch.object(target, name, module))
        self._stack.enter_context(patch.dict(worker.process.KINDS, {WorkKind.TRAIN: self._train}))

    def close(self) -> None:
        """End everything."""
        for process in self.machine.processes:
            if process.code is None:
                process.end(SIGKILLED)
        self._stack.close()
        self.looker.close()

    # --- the client -----------------------------------------------------------------------------------------

    def create(self, name: str, *, is_checked: bool = True, is_poison: bool = False) -> None:
        """Create a job of five steps."""
        job_id = add_job(
            self.database,
            self.folder,
            seed=len(self.jobs),
            safety={"method": "none", "critic": {"type": "constant", "s": 0.0}},
            file_status="processed" if is_checked else "uploaded",
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 2}},
            },
        )
        job = self.jobs[name] = Known(name, job_id)
        job.is_poison = is_poison
        with read_only(self.database) as session:
            job.file_id = session.get_one(Job, job_id).training_file
        self.look("client")

    def finish_check(self, name: str, status: str) -> None:
        """Let the check of a job's training file end."""
        with unit_of_work(self.database) as session:
            file = session.get_one(File, self.jobs[name].file_id)
            if file.status == "uploaded":
                file.status = status
                file.status_details = "line 1 is no JSON" if status == "error" else None

    def ask(self, command: str, name: str) -> bool:
        """Have the client pause, resume or cancel a job, or delete its file; say whether that was not refused."""
        job = self.jobs[name]
        calls: dict[str, Callable[..., object]] = {
            "pause": jobs.pause_job,
            "resume": jobs.resume_job,
            "cancel": jobs.cancel_job,
        }
        try:
            with unit_of_work(self.database) as session:
                if command == "delete":
                    delete_file(session, DEFAULT_PROJECT, job.file_id)
                else:
                    calls[command](session, CLIENT, job.id)
        except (Conflict, NotFound) as error:
            self.log.append(f"client: {command} {name}: {error.code}")
            self.look("client")
            return False
        if command == "cancel":
            job.is_cancelled = True
        self.log.append(f"client: {command} {name}: yes")
        self.look("client")
        return True

    # --- machines -------------------------------------------------------------------------------------------

    def knock(self, worker_name: str) -> None:
        """Have a worker start a process, unless it has one that lives: a knock says no more than that."""
        last = self.actors.get(worker_name)
        if last is not None and last.code is None:
            return
        if last is not None and last.code not in (0, Preempted.exit_code) and last.name not in self.buried:
            self.bury(last)
        with read_only(self.database) as session:
            if find_next(session, self.settings, "gpu") is None:
                return
        owner = f"{worker_name}-{len(self.machine.processes)}"

        def main() -> int:
            return worker.process.run_next(self.database, self.settings, "gpu", owner)

        self.actors[worker_name] = self.machine.start(owner, main)

    def step(self, name: str, times: int) -> None:
        """Let a process do so many transactions."""
        process = self.actors.get(name)
        if process is None:
            return
        for _ in range(times):
            if process.code is not None or process.is_stopped:
                break
            process.step()
            self.look(process.name)

    def kill(self, name: str, *, is_seen: bool) -> None:
        """Kill a worker's process. Where the one that started it sees that, it gives the work back."""
        process = self.actors.get(name)
        if process is None or process.code is not None:
            return
        process.end(SIGKILLED)
        self.look(process.name)
        if is_seen:
            self.bury(process)
        self.buried.add(process.name)

    def bury(self, process: Process) -> None:
        """Do what the one that started a process does when it finds it dead: give back what it had."""
        self.buried.add(process.name)
        give_back(self.database, self.settings, process.name, f"its process ended with code {process.code}")
        self.look(f"the parent of {process.name}")

    def disturb(self, name: str, how: str) -> None:
        """Stop a worker's process, let it go on, ask it to end, or take the storage away from it."""
        process = self.actors.get(name)
        if process is None or process.code is not None:
            return
        if how == "continue" and not process.is_stopped:
            return
        self.log.append(f"{process.name}: {how}")
        if how == "stop":
            process.is_stopped = True
        elif how == "continue":
            process.is_stopped = False
        elif how == "terminate" and not process.is_stopped:
            process.signal(signal.SIGTERM)
        elif how == "lose the storage":
            self.failing.add(process.name)

    def repair(self, name: str, times: int) -> None:
        """Let a reconciler do so many transactions, of the round that it is in or of a new one."""
        process = self.actors.get(name)
        if process is None or process.code is not None:

            def main() -> int:
                reconcile(self.database, self.settings)
                return 0

            self.actors[name] = self.machine.start(name, main)
        self.step(name, times)

    def sign(self) -> None:
        """Have the notary do a round."""
        self._notary = self._notary or Notary(self.database, self.settings)
        self._notary.attend()
        self.look("notary")

    def release(self, name: str, times: int) -> None:
        """Let a loop of releases do so many transactions."""
        process = self.actors.get(name)
        if process is None or process.code is not None:

            def main() -> int:
                release.release_signed(self.database)
                return 0

            self.actors[name] = self.machine.start(name, main)
        self.step(name, times)

    def pass_time(self, seconds: float) -> None:
        """Let time pass on every clock; heartbeats beat in between."""
        self.machine.pass_time(seconds)
        self.look("heartbeats")

    # --- the work -------------------------------------------------------------------------------------------

    def _train(self, context: Context) -> None:
        process = self.machine.current_process()
        known = next(job for job in self.jobs.values() if job.id == context.lease.work_id)

        def before_record(step: int) -> None:
            if process.name in self.failing:
                self.failing.discard(process.name)
                raise StorageUnavailable("the storage is away")
            if known.is_poison and step == POISONED_STEP:
                raise ZeroDivisionError

        train(context, before_record)

    def look(self, who: str) -> None:
        """Look at every job after somebody's transaction."""
        self.model.look(who)

    # --- the end --------------------------------------------------------------------------------------------

    def end_all(self) -> None:
        """Let one healthy worker and the repairs go on until every job has ended. Raises AssertionError where one does not."""
        for process in self.machine.processes:
            if process.code is None and not process.is_stopped:
                process.end(SIGKILLED)
        self.look("nobody")
        self.failing.clear()
        for _ in range(80):
            self._go_on()
            if not self._open():
                break
        assert not self._open(), f"these jobs never end: {self._open()}"
        for process in self.machine.processes:
            # Whoever was stopped all the time finds that nothing is his any more.
            process.is_stopped = False
            self.pass_time(self.settings.heartbeat_s)
            while process.code is None:
                process.step()
                self.look(process.name)
        for job in self.jobs.values():
            self._check_end(job)

    def _open(self) -> list[Row]:
        rows = [job.row for job in self.jobs.values()]
        return [row for row in rows if row is not None and State(row.state) not in TERMINAL]

    def _go_on(self) -> None:
        for name, job in self.jobs.items():
            assert job.row is not None
            if job.row.state == State.VALIDATING:
                self.finish_check(name, "processed")
            if job.row.state == State.PAUSED or "pause" in self.args_of(job):
                self.ask("resume", name)
        self.pass_time(self.settings.requeue_after_s + 1)
        self.repair("healthy reconciler", 10_000)
        # Only an announcement wakes the worker; all that came before are lost.
        if self.knocks:
            self.knocks.clear()
            self.knock("healthy")
        while "healthy" in self.actors and self.actors["healthy"].code is None:
            self.step("healthy", 1)
        if any(row.state == State.SIGNING for row in self._open()):
            self.sign()
            self.release("healthy releases", 10_000)

    def args_of(self, job: Known) -> dict[str, Any]:
        """Return what the row of a job's work says beside its columns."""
        with read_only(self.database) as session:
            return session.get_one(Work, job.id).args

    def _check_end(self, job: Known) -> None:
        assert job.row is not None
        with read_only(self.database) as session:
            found = session.get_one(Job, job.id)
            bundle = build_evidence(session, job.id)
            steps = session.scalars(select(Step.step).where(Step.job_id == job.id).order_by(Step.step)).all()
            error = found.work.error
        path = self.folder / "evidence.zip"
        path.write_bytes(bundle)
        report = verify_bundle(path)
        assert report.ok, (job.name, report.lines())
        assert list(steps) == job.steps, f"{job.name}: the rows of its steps are not those on record"
        if job.is_poison and not job.is_cancelled:
            assert job.row.state == State.FAILED, job.row
        if job.row.state == State.SUCCEEDED:
            assert found.spec is not None
            expected = undisturbed(TrainingSpec.model_validate(found.spec))
            assert found.adapter_sha256 == expected, (
                f"{job.name}: another adapter than that of an undisturbed run"
            )
        elif job.row.state == State.FAILED:
            assert error is not None
            assert error["code"] in ("infrastructure", "invalid_training_file", "crash_loop"), error
        else:
            assert job.is_cancelled, f"{job.name} was cancelled by nobody"
