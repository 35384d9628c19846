"""The commands of docs/mlops.md, taken from the page and run: back up, lose everything, restore, and look."""

import ast
import io
import os
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from app import storage
from app.database import unit_of_work
from app.domain.bundle import LEAVES
from app.models.job import Job
from app.models.work import Work
from app.notary import keyfile
from app.reconciler import reconcile
from app.settings import Settings
from app.work.service import ask_for_pause, await_release
from tests.conftest import POSTGRESQL
from tests.documented import run_block
from tests.integration.conftest import MODEL, Tenant, serving
from tests.integration.released import release_job
from tests.integration.test_held import hold
from tests.object_store import make_bucket, point_at
from tests.support import add_base_model, settings_in


def fill(settings: Settings, folder: Path) -> dict[str, Any]:
    """Make a small installation and return what it must still know after its restoration."""
    with serving(settings) as server:
        add_base_model(server.database, MODEL, folder / "model")
        tenant = Tenant(server)
        try:
            job = tenant.create_job(metadata={"team": "x"})
            path = f"/v1/fine_tuning/jobs/{job['id']}"
            deadline = time.monotonic() + 30
            while tenant.http.get("/v1/log/checkpoint").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            return {
                "key": tenant.key,
                "job": tenant.get(path),
                "events": tenant.get(f"{path}/events"),
                "content": tenant.http.get(f"/v1/files/{job['training_file']}/content").content,
                "evidence": tenant.http.get(f"{path}/evidence").content,
            }
        finally:
            tenant.close()


def test_adapter_is_fetched_as_a_folder_for_serving(tenant: Tenant, tmp_path: Path) -> None:
    released = release_job(tenant)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("adapter_config.json", "{}")
    zipped.seek(0)
    stored = storage.store_stream(tenant.server.settings.storage, zipped)
    with unit_of_work(tenant.server.database) as session:
        session.get_one(Job, released.job_id).adapter_sha256 = stored.sha256
    server = {"TETHER_URL": tenant.server.url, "TETHER_API_KEY": tenant.key}
    run_block("adapter", tmp_path, JOB_ID=released.job_id, **server)
    assert (tmp_path / "adapter/adapter_config.json").read_text() == "{}"


class TestPipelineStep:
    """What docs/examples/ci_mlflow.py decides; tests/e2e/test_mlops.py runs the whole of it, with MLflow."""

    EXAMPLE = Path(__file__).parents[2] / "docs/examples/ci_mlflow.py"

    def load(self) -> dict[str, Any]:
        """Return the example's functions that decide; the rest of the file imports MLflow, which may not be here."""
        wanted = ("waits_for_a_person", "judge")
        tree = ast.parse(self.EXAMPLE.read_text(encoding="utf-8"))
        tree.body = [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name in wanted]
        assert len(tree.body) == len(wanted)
        functions: dict[str, Any] = {"Any": Any}
        exec(compile(tree, self.EXAMPLE, "exec"), functions)  # noqa: S102  (A file of this repository.)
        return functions

    def decide(self, tenant: Tenant, job_id: str) -> tuple[bool, str | None]:
        """Say what the example makes of a job as the official client reads it: does it wait for a person, and what is wrong."""
        functions = self.load()
        job = tenant.openai.fine_tuning.jobs.retrieve(job_id)
        return functions["waits_for_a_person"](job), functions["judge"](job, 0.5)

    def test_job_that_goes_on_by_itself_is_waited_for(self, tenant: Tenant) -> None:
        job_id = tenant.create_job()["id"]
        assert self.decide(tenant, job_id)[0] is False
        tenant.openai.fine_tuning.jobs.pause(job_id)
        # Whoever paused it lets it go on.
        assert self.decide(tenant, job_id)[0] is False

    def test_job_that_has_paused_itself_is_given_up(self, tenant: Tenant) -> None:
        job_id = tenant.create_job()["id"]
        with unit_of_work(tenant.server.database) as session:
            ask_for_pause(
                session, session.get_one(Work, job_id), by="monitor", reason="the model has drifted"
            )
        reconcile(tenant.server.database, tenant.server.settings)
        waits, failure = self.decide(tenant, job_id)
        assert waits is True
        assert failure == "it is paused until a person decides: the model has drifted"

    def test_held_job_is_given_up_and_a_released_one_is_not(self, tenant: Tenant) -> None:
        held = hold(tenant)
        waits, failure = self.decide(tenant, held.job_id)
        assert waits is True
        assert str(failure).startswith("it is held until a person decides: the gate of its policy;")
        assert f"tether jobs show {held.job_id}" in str(failure)
        assert self.decide(tenant, release_job(tenant).job_id) == (False, None)
        with unit_of_work(tenant.server.database) as session:
            await_release(session, session.get_one(Work, held.job_id), event=0)
        assert self.decide(tenant, held.job_id)[0] is False, "only the signature is missing"


def leaves_of(evidence: bytes) -> bytes:
    """Return the records in a bundle; what is signed of them differs from log to log."""
    with zipfile.ZipFile(io.BytesIO(evidence)) as archive:
        return archive.read(LEAVES)


def run_tether(settings: Settings, *arguments: str) -> None:
    """Run a command on an installation."""
    environment = {**os.environ, **settings.child_environment()}
    subprocess.run([sys.executable, "-m", "app", *arguments], env=environment, check=True, timeout=60)


def check_restored(settings: Settings, known: dict[str, Any]) -> None:
    """Look for everything that the installation knew, with the key that it gave out."""
    with serving(settings) as server:
        tenant = Tenant(server)
        tenant.http.headers["authorization"] = f"Bearer {known['key']}"
        try:
            path = f"/v1/fine_tuning/jobs/{known['job']['id']}"
            assert tenant.get(path) == known["job"]
            assert tenant.get(f"{path}/events") == known["events"]
            assert leaves_of(tenant.http.get(f"{path}/evidence").content) == leaves_of(known["evidence"])
            file = known["job"]["training_file"]
            assert tenant.http.get(f"/v1/files/{file}/content").content == known["content"]
        finally:
            tenant.close()


def test_folder_is_backed_up_and_restored(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "home")
    known = fill(settings, tmp_path)
    run_tether(settings, "log", "rotate")
    keys = (
        keyfile.load_key(settings.notary_dir).private_bytes_raw(),
        keyfile.load_former_keys(settings.notary_dir),
    )
    assert len(keys[1]) == 1
    places = {"TETHER_HOME": str(settings.home), "BACKUP": str(tmp_path / "backup")}
    run_block("backup", **places)
    # Everything is lost, to another name, so that nothing can be read from it by accident.
    settings.home.rename(tmp_path / "lost")
    run_block("restore", **places)
    assert settings.home.stat().st_mode & 0o777 == 0o700
    folder = settings.notary_dir
    assert (
        keyfile.load_key(folder).private_bytes_raw(),
        keyfile.load_former_keys(folder),
    ) == keys, "auditors must be told of former keys"
    check_restored(settings, known)


def copy_bucket(source: str, target: str) -> None:
    """Do what `aws s3 sync` does."""
    from obstore.store import from_url

    options = {"client_options": {"allow_http": True}, "virtual_hosted_style_request": False}
    before, after = (from_url(url, **options) for url in (source, target))
    for page in before.list():
        for each in page:
            after.put(each["path"], before.get(each["path"]).bytes())


@pytest.fixture
def own_database() -> Iterator[str]:
    """The URL of a whole database, because that is what one backs up."""
    if POSTGRESQL is None:
        pytest.skip("TETHER_TEST_DATABASE_URL names no PostgreSQL")
    name = f"tether_test_{uuid.uuid4().hex}"
    make, drop = (
        sql.SQL(each).format(sql.Identifier(name))
        for each in ("CREATE DATABASE {}", "DROP DATABASE {} (FORCE)")
    )
    parts = conninfo_to_dict(POSTGRESQL)
    with psycopg.connect(POSTGRESQL, autocommit=True) as administrator:
        administrator.execute(make)
        try:
            user = parts.get("user", "postgres")
            secret = f":{parts['password']}" if "password" in parts else ""
            yield f"postgresql://{user}{secret}@{parts['host']}:{parts.get('port', 5432)}/{name}"
        finally:
            administrator.execute(drop)


def test_database_and_bucket_are_backed_up_and_restored(
    own_database: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    point_at(monkeypatch, s3_endpoint)
    first, second = (f"s3://{make_bucket(s3_endpoint)}" for _ in range(2))
    settings = settings_in(tmp_path / "home", database_url=own_database, storage_url=first)
    known = fill(settings, tmp_path)
    places = {"TETHER_DATABASE_URL": own_database, "BACKUP": str(tmp_path / "backup")}
    run_block("backup-postgresql", **places)
    copy_bucket(first, second)
    with psycopg.connect(make_conninfo(own_database), autocommit=True) as everything:
        everything.execute("DROP SCHEMA public CASCADE")
        everything.execute("CREATE SCHEMA public")
    run_block("restore-postgresql", **places)
    check_restored(settings.model_copy(update={"storage_url": second}), known)
