"""A real server on a real port for the tests of the wire.

One server per database serves the whole run. Every test has a project of its own, so that tests see each other
no more than tenants do.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import select

from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.job import State
from app.domain.scopes import Role
from app.keys.service import add_key
from app.main import create_app
from app.models.base import new_id, utc_now
from app.models.tenancy import Project
from app.models.work import Work
from app.notary.service import run_notary
from app.queue import build_publisher
from app.serve import listen, prepare
from app.settings import Settings
from app.work.release import run_releases
from app.work.repository import get_work
from tests import warm_worker
from tests.conftest import BACKENDS, POSTGRESQL
from tests.support import add_base_model, database_on, settings_in

MODEL = "org/base-model"
ROW = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}


@dataclass(frozen=True)
class Server:
    """A server that listens, and the database behind it."""

    url: str
    app: FastAPI
    settings: Settings
    database: Database


@contextmanager
def serving(settings: Settings) -> Iterator[Server]:
    """Run the API under uvicorn in a thread."""
    prepare(settings)
    app = create_app(settings)
    database = Database(open_engine(settings.database_url), build_publisher(settings))
    config = uvicorn.Config(app, log_level="critical", ws="none", lifespan="on", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    with listen("127.0.0.1", 0) as listening:
        stop = threading.Event()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        others = [
            threading.Thread(target=run_notary, args=(database, settings, stop)),
            threading.Thread(target=run_releases, args=(database, stop)),
        ]
        for each in (thread, *others):
            each.start()
        try:
            deadline = time.monotonic() + 60
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield Server(f"http://127.0.0.1:{listening.getsockname()[1]}", app, settings, database)
        finally:
            server.should_exit = True
            stop.set()
            for each in (thread, *others):
                each.join()
            database.engine.dispose()


@contextmanager
def api_process(settings: Settings) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """Run `tether api` on a database that is there already; give its address, the process and its log."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = settings.home / f"api-{port}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "api", "--port", str(port)],
            env={**os.environ, **settings.child_environment(), "TETHER_LOG_FORMAT": "json"},
            stderr=file,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{url}/healthz")
                break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield url, process, log
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(60)


class Tenant:
    """A project, a key of it, and clients that use it."""

    def __init__(self, server: Server, role: Role = Role.MEMBER) -> None:
        self.server = server
        self.project_id = new_id("proj_")
        with unit_of_work(server.database) as session:
            session.add(Project(id=self.project_id, name="test", created_at=utc_now()))
            session.flush()
            self.key = add_key(session, name="test", role=role, project_id=self.project_id).secret
        self.http = httpx.Client(
            base_url=server.url, headers={"authorization": f"Bearer {self.key}"}, timeout=60
        )
        self.openai = openai.OpenAI(api_key=self.key, base_url=f"{server.url}/v1", max_retries=0)

    def close(self) -> None:
        """Close the clients."""
        self.http.close()
        self.openai.close()

    def post_file(self, content: bytes, **fields: Any) -> httpx.Response:
        """Upload bytes as a training file."""
        filename = fields.pop("filename", "rows.jsonl")
        return self.http.post(
            "/v1/files", files={"file": (filename, content)}, data={"purpose": "fine-tune", **fields}
        )

    def upload(self, *rows: dict[str, Any]) -> str:
        """Upload rows (one, unlike any other, unless given) and return the file's id."""
        content = jsonl(*(rows or [unlike_any_other()]))
        reply = self.post_file(content)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["id"])

    def post_job(self, **fields: Any) -> httpx.Response:
        """Ask for a job, with a new training file unless one is given."""
        body = {"model": MODEL, **fields}
        if "training_file" not in body:
            body["training_file"] = self.upload()
        return self.http.post("/v1/fine_tuning/jobs", json=body)

    def create_job(self, **fields: Any) -> dict[str, Any]:
        """Create a job and return its object."""
        reply = self.post_job(**fields)
        assert reply.status_code == 200, reply.text
        job: dict[str, Any] = reply.json()
        return job

    def get(self, path: str, **query: Any) -> Any:
        """Return what a path answers, which must be 200."""
        reply = self.http.get(path, params=query)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def work_of_file(self, file_id: str) -> Work:
        """Return the row of work that checks a file."""
        with read_only(self.server.database) as session:
            rows = session.scalars(select(Work).where(Work.project_id == self.project_id)).all()
        return next(work for work in rows if work.args.get("file") == file_id)


def run_worker(tenant: Tenant, work: Work) -> Work:
    """Run the process that a knock would start, to its end and to its signature, and return the row of work."""
    warm_worker.work(work.id, tenant.server.settings.child_environment(), timeout_s=120)
    deadline = time.monotonic() + 30
    while True:
        with read_only(tenant.server.database) as session:
            done = get_work(session, work.id)
        assert done is not None
        if done.state != State.SIGNING:
            return done
        assert time.monotonic() < deadline
        time.sleep(0.05)


def jsonl(*rows: dict[str, Any]) -> bytes:
    """Return rows as JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def unlike_any_other() -> dict[str, Any]:
    """Return a good row whose bytes no other test has in storage."""
    return {"messages": [{"role": "user", "content": new_id("hello ")}, ROW["messages"][1]]}


def refused(reply: httpx.Response, status: int, *, param: str | None = None, code: str | None = None) -> str:
    """Check that a reply is the wire's error form, with these fields, and return its message."""
    assert reply.status_code == status, reply.text
    assert reply.json().keys() == {"error"}
    error = reply.json()["error"]
    beside = {"problems", "problem_count", "problem_kinds", "complete"} if "problems" in error else set()
    assert error.keys() == {"message", "type", "param", "code"} | beside
    assert error["param"] == param, error
    if code is not None:
        assert error["code"] == code, error
    assert reply.headers["x-request-id"].startswith("req_")
    message: str = error["message"]
    assert message
    return message


@pytest.fixture(scope="package", params=BACKENDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one base model and its critic."""
    folder = tmp_path_factory.mktemp("server")
    with (
        database_on(request.param, folder, POSTGRESQL) as url,
        serving(settings_in(folder / "home", database_url=url, webhook_private_hosts="127.0.0.1")) as running,
    ):
        add_base_model(running.database, MODEL, folder / "model")
        yield running


@pytest.fixture
def tenant(server: Server) -> Iterator[Tenant]:
    """A new project on the server."""
    tenant = Tenant(server)
    yield tenant
    tenant.close()


@pytest.fixture
def operator(server: Server) -> Iterator[Tenant]:
    """A new project on the same server, with an operator's key."""
    operator = Tenant(server, Role.OPERATOR)
    yield operator
    operator.close()


@pytest.fixture
def stranger(server: Server) -> Iterator[Tenant]:
    """Another new project on the same server."""
    tenant = Tenant(server)
    yield tenant
    tenant.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Any]:
    """A function that gives a tenant on a server of its own, with other settings, on SQLite."""
    opened: list[Any] = []

    def start(role: Role = Role.MEMBER, **overrides: Any) -> Tenant:
        running = serving(settings_in(tmp_path / "home", **overrides))
        server = running.__enter__()
        opened.append(running)
        add_base_model(server.database, MODEL, tmp_path / "model")
        tenant = Tenant(server, role)
        opened.append(tenant)
        return tenant

    yield start
    for each in reversed(opened):
        if isinstance(each, Tenant):
            each.close()
        else:
            each.__exit__(None, None, None)
