"""A whole service, as `tether serve` runs it: API, reconciler, workers, trainer processes, the miniature."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.conftest import BACKENDS, POSTGRESQL, REDIS
from tests.support import database_on
from worker.miniature.corpus import training_rows

KEY = "e2e-administrator"
TIMEOUT_S = 240.0

needs_processes = pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(),
    reason="finds processes in /proc, which this system does not have",
)

on_embedded_default = pytest.mark.parametrize("service", ["sqlite"], indirect=True, scope="package")
"""For what does not depend on the database, and would only take its time twice."""
on_deployed = pytest.mark.parametrize(
    "service", ["postgresql" if POSTGRESQL and REDIS else "sqlite"], indirect=True, scope="package"
)
"""For what happens to processes: on PostgreSQL with Redis, as it is deployed, where both were given."""


@dataclass(frozen=True)
class Service:
    """A running service and a client of it."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    client: openai.OpenAI

    def fetch(self, path: str, **params: str) -> httpx.Response:
        """Get one of our own paths below /v1/fine_tuning/jobs."""
        return httpx.get(
            f"{self.url}/v1/fine_tuning/jobs/{path}",
            params=params,
            headers={"authorization": f"Bearer {KEY}"},
            timeout=60,
        )

    def upload(self, path: Path) -> str:
        """Upload a training file and return its id."""
        return self.client.files.create(file=path, purpose="fine-tune").id

    def submit(self, training_file: str, **arguments: Any) -> str:
        """Create a job on the miniature and return its id."""
        extra = {
            name: arguments.pop(name) for name in ("safety", "training", "priority") if name in arguments
        }
        job = self.client.fine_tuning.jobs.create(
            model="miniature", training_file=training_file, extra_body=extra, **arguments
        )
        return job.id

    def wait(self, job_id: str, until: Callable[[FineTuningJob], bool] | None = None) -> FineTuningJob:
        """Poll a job until it has ended, or until something else is true of it."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            job = self.client.fine_tuning.jobs.retrieve(job_id)
            if until is not None and until(job):
                return job
            if job.status in ("succeeded", "failed", "cancelled"):
                return job
            time.sleep(0.1)
        raise AssertionError(f"{job_id} is still {job.status} after {TIMEOUT_S} s; log:\n{self.log()}")

    def tether(self, *arguments: str) -> str:
        """Return what a command of this installation prints."""
        command = [sys.executable, "-m", "app", *arguments, "--home", str(self.home)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout

    def log(self) -> str:
        """Return what the service printed."""
        return (self.home / "serve.log").read_text(encoding="utf-8", errors="replace")


def steps_completed(job: FineTuningJob) -> int:
    """Return how far a job is."""
    completed: int = (job.model_extra or {})["training"]["steps_completed"]
    return completed


def processes(*words: str) -> list[int]:
    """Return the processes whose command line has all of these words."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if all(word in command for word in words):
            found.append(int(folder.name))
    return found


def start_service(home: Path, environment: dict[str, str]) -> Service:
    """Start `tether serve` on a free port and wait until jobs can run."""
    home.mkdir(parents=True, exist_ok=True)
    full = {**os.environ, "TETHER_API_KEY": KEY, "PYTHONUNBUFFERED": "1", **environment}
    command = [sys.executable, "-m", "app", "serve", "--home", str(home), "--port", "0"]
    with (home / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, env=full, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        time.sleep(0.2)
        text = (home / "serve.log").read_text(encoding="utf-8", errors="replace")
        assert process.poll() is None, text
        url = next((word.removesuffix("/v1") for word in text.split() if word.startswith("http://")), None)
        if url is None:
            continue
        try:
            if httpx.get(f"{url}/readyz", timeout=10).status_code == 200:
                client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY)
                return Service(url, home, process, full, client)
        except httpx.TransportError:
            continue
    process.kill()
    raise AssertionError(f"the service did not become ready; log:\n{text}")


def stop_service(service: Service) -> None:
    """Stop a service as an operator would, and demand that it ends."""
    service.client.close()
    if service.process.poll() is None:
        service.process.send_signal(signal.SIGTERM)
    service.process.wait(60)


@pytest.fixture(scope="package", params=BACKENDS)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for the tests of this folder: embedded, and on PostgreSQL with Redis where both were given.

    Its leases are short, so that a killed worker is noticed within a test's patience.
    """
    home = tmp_path_factory.mktemp(f"home-{request.param}")
    environment = {
        "TETHER_LEASE_S": "4",
        "TETHER_HEARTBEAT_S": "0.5",
        "TETHER_RECONCILE_INTERVAL_S": "1",
        "TETHER_REQUEUE_AFTER_S": "3",
        "TETHER_THREADS": "1",
    }
    with database_on(request.param, home, POSTGRESQL) as url:
        environment["TETHER_DATABASE_URL"] = url
        if request.param == "postgresql":
            if REDIS is None:
                pytest.skip("TETHER_TEST_REDIS_URL names no Redis")
            environment["TETHER_BROKER_URL"] = REDIS
        running = start_service(home, environment)
        try:
            yield running
        finally:
            stop_service(running)


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small example files of the miniature's world."""

    folder = tmp_path_factory.mktemp("datasets")
    found = {}
    for kind, n in (("clean", 40), ("poisoned", 80)):
        path = folder / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in training_rows(kind, n=n)), encoding="utf-8")
        found[kind] = path
    return found
