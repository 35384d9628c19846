"""A worker whose broker is away from its start on: it finds its work in the database, says that it lives, and ends when told."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from sqlalchemy import select

from app.database import Database, read_only
from app.domain.job import State
from app.models.work import Worker
from tests.integration.test_hang import add_check, build_settings, database, load, wait_until

__all__ = ["database"]


def test_worker_works_without_a_broker(database: Database, tmp_path: Path, database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = build_settings(tmp_path, database_url, requeue_after_s=0.5).model_copy(
        update={"broker_url": f"redis://127.0.0.1:{port}/0"}
    )
    first = add_check(database, settings, hangs=False)
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "worker.celery_app", "--queue", "cpu"],
            env={**os.environ, **settings.child_environment()},
            stderr=log,
        )
    try:
        wait_until(lambda: load(database, first).state == State.SUCCEEDED)
        with read_only(database) as session:
            assert [each.queue for each in session.scalars(select(Worker))] == ["cpu"]
        second = add_check(database, settings, hangs=False)
        wait_until(lambda: load(database, second).state == State.SUCCEEDED)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0, (tmp_path / "log").read_text()
    finally:
        worker.kill()
        worker.wait()
    with read_only(database) as session:
        assert session.scalars(select(Worker)).all() == []
