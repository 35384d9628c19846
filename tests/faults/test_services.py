"""Faults 2 and 17: the whole service is killed, is not given the time to stop, or is replaced by a newer version."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.migration import newest_revision
from tests.faults.checks import check_record, end_check
from tests.faults.installation import (
    SLOWLY,
    TIMEOUT_S,
    Installation,
    Template,
    installed,
    kill_session,
    on_postgresql,
    on_sqlite,
    reference_run,
)
from tests.faults.servers import Redis

ROOT = Path(__file__).parents[2]
STOP_S = 60.0


@pytest.fixture
def service(template: Template, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    """An installation of which nothing runs; on PostgreSQL it has Redis, too."""
    # A killed service gives nothing back: whoever comes next waits for its leases.
    settings: dict[str, Any] = {"lease_s": 5}
    if template.server is not None:
        redis: Redis = request.getfixturevalue("redis_server")
        settings["broker_url"] = redis.url()
    with installed(template, tmp_path, **settings) as copy:
        yield copy


def wait_for_no_process(installation: Installation) -> None:
    """Wait until nothing that was started here lives any more, but for zombies that nobody has waited for."""
    installation.wait(lambda: not installation.processes(), "no process left behind")


@on_sqlite
def test_a_service_that_is_killed_and_one_that_is_not_given_time_to_stop(
    service: Installation, template: Template, tmp_path: Path, rng: random.Random
) -> None:
    reference = reference_run(template, tmp_path)
    first = service.start_service(SLOWLY)
    job_id = service.submit()
    service.wait_for_step(job_id, rng.randint(3, 7))
    assert len(service.processes("worker.celery_app")) == 2
    # Not its process group: what it has started must notice by itself.
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    wait_for_no_process(service)
    check_record(service.leaves(job_id), ended=False)

    second = service.start_service(SLOWLY)
    done = service.kinds(job_id).count("step")
    service.wait_for_step(job_id, done + rng.randint(2, 4))
    second.send_signal(signal.SIGTERM)
    time.sleep(rng.uniform(0.0, 0.3))
    kill_session(second)
    wait_for_no_process(service)
    check_record(service.leaves(job_id), ended=False)

    third = service.start_service()
    service.wait_for_success(job_id)
    end_check(service, job_id, reference=reference)
    third.send_signal(signal.SIGTERM)
    assert third.wait(STOP_S) == 0, service.read_log()
    wait_for_no_process(service)


@on_postgresql
def test_a_killed_worker_and_a_killed_trainer_under_it(
    service: Installation, template: Template, tmp_path: Path, rng: random.Random
) -> None:
    reference = reference_run(template, tmp_path)
    service.start_service(SLOWLY)
    job_id = service.submit()
    for words in (("worker.process", "gpu"), ("worker.celery_app", "gpu")):
        done = service.kinds(job_id).count("step")
        service.wait_for_step(job_id, done + rng.randint(2, 4))
        (victim,) = service.processes(*words)
        os.kill(victim, signal.SIGKILL)
    service.wait_for_success(job_id)
    end_check(service, job_id, reference=reference)
    assert service.work(job_id).attempt >= 3


@on_postgresql
def test_a_newer_version_takes_over_a_running_job(
    service: Installation, template: Template, tmp_path: Path
) -> None:
    """The schema is brought up under a running job, which drains; what is left of the old version refuses; the new one goes on."""
    reference = reference_run(template, tmp_path)
    newer = make_newer_version(tmp_path)
    # The trainer stands still after a step, so that the job cannot end before all of this is done.
    old = service.start_service(failpoints="step.after_commit=stop@8", lease_s=300)
    job_id = service.submit()
    service.wait_for_step(job_id, 8)
    (trainer,) = service.processes("worker.process", "gpu")
    # Somebody forgot this one. It finds nothing to do before the schema is another.
    forgotten = service.start_part("worker")
    run(service, newer, "migrate")
    old.send_signal(signal.SIGTERM)
    service.wait(lambda: is_pending(trainer, signal.SIGTERM), "a trainer that is told to stop")
    os.kill(trainer, signal.SIGCONT)
    assert old.wait(STOP_S) == 0, service.read_log()
    assert service.work(job_id).state == "queued"
    drained_at = service.kinds(job_id).count("step")
    assert service.kinds(job_id)[-1] == "ckpt"
    leaves = service.leaves(job_id)
    service.wait(
        lambda: "no work is taken: the database is at revision 9999" in service.read_log(), "a refusal"
    )
    for command in (["worker", "--queue", "gpu"], ["serve", "--port", "0"], ["reconciler"], ["notary"]):
        left = service.start_part(*command)
        assert left.wait(STOP_S) == 1, f"{command}; log:\n{service.read_log()}"
    assert forgotten.poll() is None
    forgotten.terminate()
    assert forgotten.wait(STOP_S) == 0
    wait_for_no_process(service)
    assert service.read_log().count("a newer version of Tether made it") >= 5
    assert (service.leaves(job_id), service.work(job_id).attempt) == (leaves, 1)

    with serving(service, newer):
        service.wait_for_success(job_id)
        end_check(service, job_id, reference=reference)
    resumed = [leaf["body"]["from_step"] for leaf in leaves_of(service, job_id, "job.resume")]
    assert resumed == [drained_at]


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Say whether a signal waits for a process that is stopped."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["ShdPnd"], 16) >> (number - 1) & 1)


def make_newer_version(folder: Path) -> Path:
    """Copy the code, with one more migration."""
    newer = folder / "newer"
    for name in ("app", "worker", "migrations"):
        shutil.copytree(ROOT / name, newer / name, ignore=shutil.ignore_patterns("__pycache__"))
    (newer / "migrations" / "versions" / "9999_newer.py").write_text(
        f'''"""a column of the future"""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{newest_revision()}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("of_the_future", sa.String(20), nullable=True))
'''
    )
    return newer


def run(service: Installation, version: Path, *command: str) -> None:
    """Run a command of another version of the code."""
    done = subprocess.run(
        [sys.executable, "-m", "app", *command],
        cwd=version,
        env=service.environment() | {"PYTHONPATH": str(version)},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def serving(service: Installation, version: Path) -> Iterator[None]:
    """Run the whole service of another version of the code."""
    process = service.start_service(cwd=version)
    yield
    process.send_signal(signal.SIGTERM)
    assert process.wait(STOP_S) == 0, service.read_log()


def leaves_of(service: Installation, job_id: str, kind: str) -> list[dict[str, Any]]:
    """Return the records of one kind."""
    return [leaf for leaf in service.leaves(job_id) if leaf["t"].startswith(f"tether.{kind}/")]
