"""The commands of docs/mlops.md, taken from the page and run: back up, lose everything, restore, and look."""

import io
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

from app.domain.bundle import LEAVES
from app.settings import Settings
from tests.conftest import POSTGRESQL
from tests.documented import run_block
from tests.integration.conftest import MODEL, Tenant, serving
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


def leaves_of(evidence: bytes) -> bytes:
    """Return the records in a bundle; what is signed of them differs from log to log."""
    with zipfile.ZipFile(io.BytesIO(evidence)) as archive:
        return archive.read(LEAVES)


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
    places = {"TETHER_HOME": str(settings.home), "BACKUP": str(tmp_path / "backup")}
    run_block("backup", **places)
    # Everything is lost, to another name, so that nothing can be read from it by accident.
    settings.home.rename(tmp_path / "lost")
    run_block("restore", **places)
    assert settings.home.stat().st_mode & 0o777 == 0o700
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
