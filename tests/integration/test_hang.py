"""Processes that hang, stop or are stuck: none looks alive, each frees its device, and its work ends within its budget."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.job import State, WorkKind
from app.failpoints import VARIABLE
from app.files.service import add_file
from app.keys.service import DEFAULT_PROJECT, ensure_project
from app.models.work import Work
from app.reconciler import reconcile
from app.settings import Settings
from app.storage import store_stream
from app.work import repository
from app.work.fair_queue import find_next
from tests.support import collect, settings_in
from worker import tasks
from worker.abandoned import give_back
from worker.lease import HUNG, LOST, Lease
from worker.tasks import Processes

DEADLINE_S = 120.0
PROCESS = """
import os, sys
from app.database import read_only
from app.domain.job import State, WorkKind
from app.models.work import Work
from worker import process

check = process.KINDS[WorkKind.VALIDATE_FILE]

def check_or_hang(context):
    with read_only(context.database) as session:
        hangs = session.get_one(Work, context.lease.work_id).args["hangs"]
    if hangs:
        context.lease.move(State.RUNNING)
        os.read(os.pipe()[0], 1)
    check(context)

process.KINDS[WorkKind.VALIDATE_FILE] = check_or_hang
sys.exit(process.main())
"""
"""The process that works, with a check of files that waits for ever in the kernel where its row says so."""


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with the schema."""
    database = Database(open_engine(database_url), collect([]))
    with unit_of_work(database) as session:
        ensure_project(session)
    yield database
    database.engine.dispose()


def build_settings(folder: Path, url: str, **overrides: float) -> Settings:
    """Return settings under which nobody waits for long, and work that is well has time enough on a busy machine."""
    fast = {"lease_s": 30.0, "heartbeat_s": 0.3, "stall_s": 30.0, "requeue_after_s": 0.1}
    return settings_in(folder, database_url=url, max_attempts_without_progress=2, **{**fast, **overrides})


def add_check(database: Database, settings: Settings, *, hangs: bool) -> str:
    """Queue the check of a file, and return its id."""
    path = settings.home / "rows.jsonl"
    path.write_text(json.dumps({"messages": [], "n": time.monotonic_ns()}))
    with path.open("rb") as file:
        stored = store_stream(settings.storage, file)
    with unit_of_work(database) as session:
        file_id = add_file(
            session, project_id=DEFAULT_PROJECT, filename="rows.jsonl", purpose="fine-tune", stored=stored
        ).id
        return repository.add_work(
            session,
            kind=WorkKind.VALIDATE_FILE,
            queue="cpu",
            project_id=DEFAULT_PROJECT,
            args={"file": file_id, "hangs": hangs},
        ).id


def load(database: Database, work_id: str) -> Work:
    """Return the row as it stands."""
    with read_only(database) as session:
        return session.get_one(Work, work_id)


def start(environment: dict[str, str], *arguments: str, log: Path | None = None) -> "subprocess.Popen[bytes]":
    """Start the process that works."""
    with (log or Path(os.devnull)).open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-c", PROCESS, *arguments], env={**os.environ, **environment}, stderr=file
        )


@pytest.fixture
def hanging_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose processes hang where their row says so."""
    monkeypatch.setattr(
        tasks,
        "start_process",
        lambda queue, environment, owner: start(environment, "--queue", queue, "--owner", owner),
    )


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something to become so."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_process_that_hangs_says_where_and_exits(
    database: Database, tmp_path: Path, database_url: str
) -> None:
    settings = build_settings(tmp_path, database_url, stall_s=5.0)
    work_id = add_check(database, settings, hangs=True)
    process = start(settings.child_environment(), work_id, log=tmp_path / "log")
    assert process.wait(DEADLINE_S) == HUNG
    log = (tmp_path / "log").read_text()
    assert "has got nowhere for" in log
    assert "MainThread" in log
    assert "check_or_hang" in log
    # Its lease still ran: the heartbeat had been renewing it.
    with read_only(database) as session:
        assert [each.id for each in repository.list_expired(session)] == []
    assert load(database, work_id).state in (State.STARTING, State.RUNNING)


@pytest.mark.usefixtures("hanging_checks")
def test_work_that_always_hangs_fails_within_its_budget_while_other_work_goes_on(
    database: Database, tmp_path: Path, database_url: str
) -> None:
    settings = build_settings(tmp_path, database_url, stall_s=10.0)
    hanging = add_check(database, settings, hangs=True)
    well = add_check(database, settings, hangs=False)

    def has_work() -> bool:
        with read_only(database) as session:
            return find_next(session, settings, "cpu") is not None

    processes = Processes(settings, "cpu", has_work, partial(give_back, database, settings), lambda _: True)
    stop = threading.Event()
    # No knock ever comes: the worker finds its work by looking.
    looking = threading.Thread(target=processes.look_for_work, args=(stop,))
    looking.start()
    try:
        ended = {State.SUCCEEDED, State.FAILED}
        wait_until(lambda: {load(database, hanging).state, load(database, well).state} <= ended)
    finally:
        stop.set()
        looking.join()
    assert load(database, well).state == State.SUCCEEDED
    work = load(database, hanging)
    assert (work.state, work.attempt, work.owner) == (State.FAILED, 2, None)
    assert work.error is not None
    assert work.error["code"] == "crash_loop"
    assert "2 attempts in a row" in work.error["message"]
    assert "hung: its work got nowhere for 10 s" in work.error["message"]


def test_process_that_was_stopped_past_its_lease_ends_without_a_word(
    database: Database, tmp_path: Path, database_url: str
) -> None:
    settings = build_settings(tmp_path, database_url, lease_s=5.0, stall_s=600)
    work_id = add_check(database, settings, hangs=True)
    process = start(settings.child_environment(), work_id, log=tmp_path / "log")
    try:
        wait_until(lambda: load(database, work_id).state == State.RUNNING)
        process.send_signal(signal.SIGSTOP)

        def is_taken_over() -> bool:
            reconcile(database, settings)
            return load(database, work_id).state == State.QUEUED

        wait_until(is_taken_over)
        with unit_of_work(database) as session:
            other = repository.claim(session, work_id, owner="another", lease_ms=600_000)
        assert other is not None
        process.send_signal(signal.SIGCONT)
        assert process.wait(DEADLINE_S) == LOST
    finally:
        process.kill()
        process.wait()
    work = load(database, work_id)
    assert (work.state, work.owner, work.epoch) == (State.STARTING, "another", other.epoch)


@pytest.mark.usefixtures("hanging_checks")
def test_process_that_stays_stopped_is_killed_by_its_worker(
    database: Database, tmp_path: Path, database_url: str
) -> None:
    settings = build_settings(tmp_path, database_url, lease_s=5.0, stall_s=600)
    work_id = add_check(database, settings, hangs=True)
    given_back: list[str] = []

    def owns(owner: str) -> bool:
        with read_only(database) as session:
            return bool(repository.list_owned(session, owner))

    def keep(owner: str, reason: str, *, out_of_memory: bool) -> None:
        given_back.append(reason)

    processes = Processes(settings, "cpu", lambda: not given_back, keep, owns)
    waking = threading.Thread(target=processes.wake, args=(work_id,))
    waking.start()
    try:
        wait_until(lambda: load(database, work_id).state == State.RUNNING)
        assert processes._running is not None
        processes._running.send_signal(signal.SIGSTOP)

        def is_killed() -> bool:
            reconcile(database, settings)
            return bool(given_back)

        wait_until(is_killed)
    finally:
        if processes._running is not None:
            processes._running.kill()
        waking.join()
    assert given_back == ["its process was killed by signal 9"]


def test_process_that_stops_before_its_claim_is_killed_by_its_worker(
    database: Database,
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = build_settings(tmp_path, database_url, stall_s=10.0)
    work_id = add_check(database, settings, hangs=False)
    started: list[subprocess.Popen[bytes]] = []
    given_back: list[str] = []

    def start_armed(queue: str, environment: dict[str, str], owner: str) -> "subprocess.Popen[bytes]":
        armed = {**environment, VARIABLE: "claim.before_commit=stop"}
        started.append(start(armed, "--queue", queue, "--owner", owner))
        return started[-1]

    def owns(owner: str) -> bool:
        with read_only(database) as session:
            return repository.holds_lease(session, owner)

    def keep(owner: str, reason: str, *, out_of_memory: bool) -> None:
        given_back.append(reason)

    monkeypatch.setattr(tasks, "start_process", start_armed)
    processes = Processes(settings, "cpu", lambda: not given_back, keep, owns)
    waking = threading.Thread(target=processes.wake, args=(work_id,))
    waking.start()
    try:
        wait_until(lambda: bool(given_back))
    finally:
        for each in started:
            each.kill()
        waking.join()
    assert given_back == ["its process was killed by signal 9"]
    assert "has taken no work and does not end; killing it" in caplog.text
    work = load(database, work_id)
    assert (work.state, work.attempt, processes._busy.locked()) == (State.QUEUED, 0, False)


def test_database_that_drops_every_connection_costs_nobody_a_lease_that_still_runs(
    database: Database, tmp_path: Path, database_url: str
) -> None:
    if database.engine.dialect.name == "sqlite":
        pytest.skip("a file drops no connections")
    settings = build_settings(tmp_path, database_url, lease_s=20.0, heartbeat_s=0.1, stall_s=600)
    own = Database(open_engine(f"{database_url}?application_name=hang"), collect([]))
    work_id = add_check(database, settings, hangs=False)
    with unit_of_work(own) as session:
        work = repository.claim(session, work_id, owner="test", lease_ms=20_000)
    assert work is not None
    lease = Lease(own, settings, work)
    lease.start()
    try:
        for _ in range(5):
            before = load(database, work_id).lease_until_ms
            assert before is not None
            with database.engine.begin() as connection:
                # Every connection of the lease.
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE pid <> pg_backend_pid() AND application_name = 'hang'"
                    )
                )
            lease.check()
            wait_until(lambda until=before: (load(database, work_id).lease_until_ms or 0) > until)  # type: ignore[misc]
    finally:
        lease.stop()
        own.engine.dispose()
