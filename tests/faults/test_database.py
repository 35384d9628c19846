"""Fault 7: PostgreSQL restarts, is cut off in the middle of a commit, has no connection left, or finds a deadlock."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tests.faults.checks import end_check
from tests.faults.installation import (
    JOBS,
    SLOWLY,
    Installation,
    Template,
    desk,
    installed,
    join,
    on_postgresql,
    reference_run,
)
from tests.faults.proxy import proxy_to
from tests.faults.servers import PostgreSQL


@on_postgresql
def test_a_crash_of_the_server_under_a_running_job(
    installation: Installation, reference: bytes, postgresql_server: PostgreSQL, rng: random.Random
) -> None:
    job_id = installation.submit()
    trainer = installation.start_trainer(SLOWLY)
    installation.wait_for_step(job_id, rng.randint(5, 15))
    postgresql_server.restart("immediate")
    join(trainer, installation)
    installation.finish(job_id)
    end_check(installation, job_id, reference=reference)


@pytest.mark.parametrize("forward", [True, False], ids=["committed", "not-committed"])
def test_a_connection_cut_during_a_commit(
    postgresql_template: Template,
    postgresql_server: PostgreSQL,
    tmp_path: Path,
    rng: random.Random,
    forward: bool,
) -> None:
    """The worker does not learn whether its commit was one. No record is lost or written twice, either way."""
    reference = reference_run(postgresql_template, tmp_path)
    with (
        proxy_to(postgresql_server.port) as proxy,
        installed(postgresql_template, tmp_path) as installation,
        desk(installation),
    ):
        job_id = installation.submit()
        # The desk goes to the server itself; what the proxy sees is the trainer's alone.
        url = postgresql_server.url(installation.database_name, port=proxy.port)
        for skip in (rng.randint(1, 6), rng.randint(7, 25)):
            struck = proxy.cut_at(b"COMMIT", forward=forward, skip=skip)
            code = installation.run_trainer(database_url=url)
            assert struck.is_set(), installation.read_log()
            # A heartbeat that is cut is sent again; work that is cut is given back.
            assert code in (0, 1), installation.read_log()
            if installation.work(job_id).state in ("signing", "succeeded"):
                break
            installation.wait(
                lambda: (
                    installation.work(job_id).owner is None and _may_be_claimed(installation.work(job_id))
                ),
                "a job that can be claimed",
            )
        installation.finish(job_id)
        end_check(installation, job_id, reference=reference)


def test_a_server_that_answers_nothing_for_longer_than_the_lease(
    postgresql_template: Template, postgresql_server: PostgreSQL, tmp_path: Path
) -> None:
    reference = reference_run(postgresql_template, tmp_path)
    with (
        proxy_to(postgresql_server.port) as proxy,
        installed(postgresql_template, tmp_path) as installation,
        desk(installation),
    ):
        job_id = installation.submit()
        url = postgresql_server.url(installation.database_name, port=proxy.port)
        # The server hears nothing of the end of the process, whose transaction may be open; it waits two minutes if not told.
        url += "?options=-cidle_in_transaction_session_timeout%3D3000"
        trainer = installation.start_trainer(SLOWLY, database_url=url, lease_s=4)
        installation.wait_for_step(job_id, 8)
        proxy.stall()
        # The main thread waits for the server in a system call; what watches the lease ends the process.
        assert join(trainer, installation) != 0
        installation.wait(lambda: installation.work(job_id).epoch > 1, "a takeover")
        proxy.flow()
        installation.finish(job_id)
        end_check(installation, job_id, reference=reference)


def test_no_connection_left(
    postgresql_template: Template, postgresql_server: PostgreSQL, tmp_path: Path
) -> None:
    """Every connection that the server gives is taken by somebody else while a job is to be claimed and worked on."""
    reference = reference_run(postgresql_template, tmp_path)
    with installed(postgresql_template, tmp_path) as installation, desk(installation):
        job_id = installation.submit()
        held = []
        try:
            with pytest.raises(psycopg.OperationalError):
                while True:
                    held.append(psycopg.connect(postgresql_server.url()))
            assert len(held) > 10
            assert installation.run_trainer() != 0
        finally:
            for connection in held:
                connection.close()
        installation.finish(job_id)
        end_check(installation, job_id, reference=reference)


def test_more_requests_than_connections_all_get_an_answer(
    postgresql_template: Template, tmp_path: Path
) -> None:
    with (
        installed(postgresql_template, tmp_path) as installation,
        desk(installation),
        ThreadPoolExecutor(60) as pool,
    ):
        job_id = installation.submit()
        replies = list(pool.map(lambda _: installation.request("GET", f"{JOBS}/{job_id}"), range(120)))
        assert {reply.status_code for reply in replies} == {200}


@on_postgresql
def test_a_deadlock_ends_one_attempt(installation: Installation, reference: bytes) -> None:
    """Somebody holds a table that the worker wants, and wants the row that the worker holds. The server ends the worker's turn."""
    job_id = installation.submit()
    trainer = installation.start_trainer("step.after_commit=sleep:2@8")
    installation.wait_for_step(job_id, 8)
    url = installation.settings.database_url
    with psycopg.connect(url) as other, psycopg.connect(url, autocommit=True) as watcher:
        # Whoever waits for longer than this looks for a deadlock, and gives in: that is the worker, after one second.
        other.execute("SET deadlock_timeout = '60s'")
        other.execute("LOCK TABLE steps IN ACCESS EXCLUSIVE MODE")
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'steps'::regclass"
        installation.wait(lambda: watcher.execute(waits).fetchone(), "a worker that waits for the table")
        other.execute("SELECT 1 FROM work WHERE id = %s FOR UPDATE", (job_id,))
        other.rollback()
    assert join(trainer, installation) == 1
    assert "DeadlockDetected" in installation.read_log()
    installation.finish(job_id)
    end_check(installation, job_id, reference=reference)


def _may_be_claimed(work: object) -> bool:
    not_before_ms = getattr(work, "not_before_ms", None)
    return not_before_ms is None or not_before_ms <= time.time() * 1000
