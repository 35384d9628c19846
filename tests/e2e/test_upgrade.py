"""An installation of an earlier version, upgraded as docs/mlops.md says, and one of a newer version, which is refused.

`installation_0002.json` is an installation that the code of migration 0002 made itself, with a job that it finished and
one that it left in the queue: the rows of its tables, and the bytes of its storage but for the adapter.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from alembic import command
from sqlalchemy import DateTime, LargeBinary, MetaData, Table, text

from app.database import open_engine
from app.migration import alembic_config, current_revision, migrate
from app.storage.local import path_of
from tests.conftest import BACKENDS, POSTGRESQL
from tests.documented import run_block
from tests.e2e.conftest import Service, start_service, stop_service
from tests.support import database_on

EARLIER: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "installation_0002.json").read_text(encoding="utf-8")
)
pytestmark = pytest.mark.timeout(900)  # A service has to start and to train twice.
QUEUED, FINISHED = sorted(EARLIER["tables"]["jobs"], key=lambda job: job["step"])


class Place(NamedTuple):
    """Where an installation is."""

    home: Path
    database_url: str

    @property
    def variables(self) -> dict[str, str]:
        """What finds it, in the environment."""
        return {
            "TETHER_HOME": str(self.home),
            "TETHER_DATABASE_URL": self.database_url,
            "TETHER_THREADS": "1",
        }


@pytest.fixture(scope="module", params=BACKENDS)
def earlier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The installation as the earlier version left it."""
    home = tmp_path_factory.mktemp(f"home-{request.param}")
    with database_on(request.param, home, POSTGRESQL) as url:
        build(url)
        for sha256, content in EARLIER["storage"].items():
            path = path_of(home / "storage", sha256)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(content))
        yield Place(home, url)


def build(url: str) -> None:
    """Make the schema of 0002 and fill it."""
    engine = open_engine(url)
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for name, rows in EARLIER["tables"].items():
            table = Table(name, MetaData(), autoload_with=connection)
            for row in rows:
                connection.execute(table.insert().values(read_row(table, row)))
    engine.dispose()


def read_row(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """Return what is in a row, with the times and bytes that JSON has as text."""
    values = {name: value for name, value in row.items() if value is not None}
    for name, value in values.items():
        kind = table.columns[name].type
        if isinstance(kind, DateTime):
            values[name] = datetime.fromisoformat(f"{value}+00:00")
        elif isinstance(kind, LargeBinary):
            values[name] = base64.b64decode(value)
    return values


def tether(place: Place, *arguments: str) -> tuple[int, str, str]:
    """Run a command on an installation; return its exit code and what it printed, out and err."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TETHER_")}
    done = subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        env={**environment, **place.variables, "COLUMNS": "200"},
        check=False,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def upgraded(earlier: Place) -> Iterator[Service]:
    """The installation after the upgrade, running; it is ready, or there is no such fixture."""
    code, found, _ = tether(earlier, "doctor")
    assert code == 1
    assert "revision 0002" in found
    assert "run: tether migrate" in found
    assert tether(earlier, "keys", "list")[0] == 1
    run_block("upgrade", **earlier.variables)
    service = start_service(earlier.home, earlier.variables)
    yield service
    stop_service(service)


def verify(service: Service, job_id: str, folder: Path) -> str:
    """Verify a job's record with the command, against the training file, and return what it says."""
    training_file = service.client.fine_tuning.jobs.retrieve(job_id).training_file
    data, evidence = folder / "rows.jsonl", folder / "evidence.zip"
    data.write_bytes(service.client.files.content(training_file).read())
    evidence.write_bytes(service.fetch(f"{job_id}/evidence").content)
    done = subprocess.run(
        [sys.executable, "-m", "app", "verify", str(evidence), "--data", str(data)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_doctor_finds_nothing_to_do(upgraded: Service, earlier: Place) -> None:
    code, found, _ = tether(earlier, "doctor")
    lines = [line.strip("│ ") for line in found.splitlines() if line.startswith("│")]
    # The installation is kept without the weights of its job, which the doctor misses, and nothing else.
    (undone,) = [line for line in lines if not line.endswith("ok")]
    missing = EARLIER["tables"]["jobs"][0]["adapter_sha256"]
    assert (code, undone.startswith("bytes that rows refer to"), missing[:12] in undone) == (1, True, True), (
        found
    )


def test_what_was_there_is_there(upgraded: Service) -> None:
    jobs = upgraded.client.fine_tuning.jobs
    assert [job.id for job in jobs.list()][-2:] == [QUEUED["id"], FINISHED["id"]]
    job = jobs.retrieve(FINISHED["id"])
    assert (job.status, job.fine_tuned_model) == ("succeeded", FINISHED["fine_tuned_model"])
    assert job.metadata == FINISHED["job_metadata"]
    assert job.result_files == FINISHED["result_files"]
    events = [each for each in EARLIER["tables"]["events"] if each["job_id"] == job.id]
    assert [each.id for each in jobs.list_events(job.id)] == [each["id"] for each in reversed(events)]
    assert upgraded.fetch(f"{job.id}/risk").json()["total_steps"] == FINISHED["step"]
    assert job.fine_tuned_model in [model.id for model in upgraded.client.models.list()]
    assert upgraded.client.files.retrieve(job.training_file).status == "processed"


def test_record_from_before_still_verifies(upgraded: Service, tmp_path: Path) -> None:
    assert "state succeeded" in verify(upgraded, FINISHED["id"], tmp_path)


def test_queued_job_is_done_as_it_was_submitted(upgraded: Service, tmp_path: Path) -> None:
    job = upgraded.wait(QUEUED["id"])
    assert job.status == "succeeded", upgraded.log()
    safety = (job.model_extra or {})["safety"]
    assert (safety["method"], safety["beta"]) == ("fixed_kl", QUEUED["request"]["safety"]["beta"])
    assert "state succeeded" in verify(upgraded, job.id, tmp_path)


def test_new_job_with_the_critic_from_before(upgraded: Service, tmp_path: Path) -> None:
    submitted = upgraded.submit(FINISHED["training_file"], hyperparameters={"n_epochs": 1})
    job = upgraded.wait(submitted)
    assert job.status == "succeeded", upgraded.log()
    assert (job.model_extra or {})["safety"]["critic"]["id"] == FINISHED["critic_id"]
    assert "state succeeded" in verify(upgraded, job.id, tmp_path)


@pytest.mark.parametrize(
    "arguments", [("migrate",), ("serve", "--port", "0"), ("api", "--port", "0"), ("doctor",)]
)
def test_newer_installation_is_refused_and_left_alone(
    database_url: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    engine = open_engine(database_url)
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    code, out, err = tether(Place(tmp_path, database_url), *arguments)
    assert code == 1
    assert "Traceback" not in err
    assert "a newer version of Tether made it" in (out if arguments == ("doctor",) else err)
    with engine.connect() as connection:
        assert current_revision(connection) == "9999"
    engine.dispose()
