"""A server of its own for the benchmark, with jobs that have been trained on paper."""

import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from sqlalchemy import insert

from app.auth import Caller
from app.base_models.service import register_base_model
from app.database import Database, open_engine, unit_of_work
from app.domain.job import State
from app.domain.risk_curve import pack_steps
from app.domain.safety_policy import load_policy
from app.domain.scopes import Role
from app.domain.step_record import StepRecord
from app.files.service import add_file
from app.jobs import repository
from app.jobs.schemas import JobCreate
from app.jobs.service import create_job
from app.keys.service import DEFAULT_PROJECT, add_key
from app.models.job import CurvePiece, Step
from app.models.work import Work
from app.serve import prepare
from app.settings import Settings, load_settings
from app.storage import Stored
from app.work import repository as work_repository

ROOT = Path(__file__).parents[2]
MODEL = "miniature"


class Installation(NamedTuple):
    """A running server, its database and a key."""

    url: str
    key: str
    pid: int
    settings: Settings
    database: Database


@contextmanager
def running(database_url: str | None, max_file_bytes: int) -> Iterator[Installation]:
    """Run the API as a process on an installation of its own. The database must be empty, or one of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="tether-bench-") as home:
        settings = load_settings(
            {},
            home=Path(home),
            database_url=database_url,
            max_file_bytes=max_file_bytes,
            requests_per_minute=0,
        )
        prepare(settings)
        database = Database(open_engine(settings.database_url), lambda knocks: None)
        with unit_of_work(database) as session:
            register_base_model(session, MODEL, ROOT / "worker/miniature/weights")
            key = add_key(session, name="benchmark", role=Role.OPERATOR).secret
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, "-m", "app", "api", "--host", "127.0.0.1", "--port", str(port)],
            env=settings.child_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url, server)
            yield Installation(url, key, server.pid, settings, database)
        finally:
            server.terminate()
            server.wait()
            database.engine.dispose()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"{url}/healthz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the server of the benchmark did not start")
        time.sleep(0.1)


def add_claimed_job(database: Database, settings: Settings) -> str:
    """Add a job, claim it as a trainer does, and return its id."""
    with unit_of_work(database) as session:
        file = add_file(
            session,
            project_id=DEFAULT_PROJECT,
            filename="rows.jsonl",
            purpose="fine-tune",
            stored=Stored("a" * 64, 100),
        )
        file.rows, file.status = 10, "processed"
        session.flush()
        body = JobCreate.model_validate({"model": MODEL, "training_file": file.id, "safety": "off"})
        caller = Caller(project_id=DEFAULT_PROJECT, key_id="key_benchmark")
        job_id = create_job(session, caller, *load_policy(None), body, settings=settings).id
    with unit_of_work(database) as session:
        work = work_repository.claim(session, job_id, owner="benchmark", lease_ms=3_600_000)
        if work is None:
            raise RuntimeError(f"{job_id} cannot be claimed")
    return job_id


def add_running_job(database: Database, settings: Settings) -> tuple[str, int]:
    """Add a job that runs; return its id and the epoch under which its owner writes."""
    job_id = add_claimed_job(database, settings)
    with unit_of_work(database) as session:
        work = session.get_one(Work, job_id)
        work_repository.move(session, work, State.RUNNING)
        return job_id, work.epoch


def make_record(step: int, chance: random.Random) -> StepRecord:
    """Return a step's record with numbers as long as real ones."""
    risk = chance.random()
    return StepRecord(
        step=step,
        data_epoch=0,
        rows=tuple(range(8)),
        tokens=800,
        risk_mean=risk,
        risk_max=risk**0.5,
        alpha_mean=1 - risk,
        alpha_min=0.01,
        beta_mean=risk,
        beta_max=0.99,
        floor=0.0,
        nll=chance.random(),
        kl=chance.random(),
        loss=chance.random(),
        token_accuracy=chance.random(),
        grad_norm=chance.random(),
        lr=chance.random() / 1000,
    )


def add_steps(database: Database, job_id: str, count: int) -> None:
    """Give a job so many steps, as they lie after having been saved one by one."""
    chance = random.Random(7)  # noqa: S311 - numbers to write down, no secrets.
    size = repository.STEPS_A_PIECE
    with unit_of_work(database) as session:
        job = repository.load_job(session, job_id)
        packed: bytes | None = None
        for start in range(1, count + 1, size):
            records = [
                make_record(step, chance).to_dict() for step in range(start, min(start + size, count + 1))
            ]
            session.execute(
                insert(Step),
                [
                    {"job_id": job_id, "project_id": job.project_id, "step": record["step"], "record": record}
                    for record in records
                ],
            )
            last = start + size - 1
            if last < count:
                packed = pack_steps(records, packed)
                session.add(
                    CurvePiece(job_id=job_id, project_id=job.project_id, last_step=last, packed=packed)
                )
