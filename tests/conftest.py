"""Which databases the tests run on. No test touches a server that the environment does not point it at."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.logs import QUIET
from tests.object_store import make_bucket, point_at, s3_server
from tests.support import Migrated, database_on

POSTGRESQL = os.environ.get("TETHER_TEST_DATABASE_URL")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what chooses between the fault suite and its short form."""
    parser.addoption(
        "--faults", action="store_true", help="run the whole fault suite, not its short form alone"
    )


def _find_redis() -> str | None:
    """Return the Redis to use. Of several processes that share the tests, each takes a database of its own."""
    url = os.environ.get("TETHER_TEST_REDIS_URL")
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    if url is None or worker == "0":
        return url
    server, _, number = url.rpartition("/")
    return f"{server}/{int(number) + int(worker)}"


REDIS = _find_redis()
BACKENDS = (
    "sqlite",
    pytest.param(
        "postgresql",
        marks=pytest.mark.skipif(POSTGRESQL is None, reason="TETHER_TEST_DATABASE_URL names no PostgreSQL"),
    ),
)


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Give loggers back as they were: what runs in this process may set them up for a stream that a test closes."""
    root = logging.getLogger()
    before, levels = (root.handlers[:], root.level), {name: logging.getLogger(name).level for name in QUIET}
    yield
    root.handlers, root.level = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Migrated]:
    """Where databases with the schema come from."""
    migrated = Migrated(tmp_path_factory.mktemp("migrated"), POSTGRESQL)
    yield migrated
    migrated.close()


@pytest.fixture(params=BACKENDS)
def database_url(request: pytest.FixtureRequest, migrated: Migrated, tmp_path: Path) -> Iterator[str]:
    """A database with the schema that nobody else uses, once on SQLite and once on PostgreSQL."""
    with migrated.on(request.param, tmp_path) as url:
        yield url


@pytest.fixture
def sqlite_url(migrated: Migrated, tmp_path: Path) -> Iterator[str]:
    """A database on SQLite with the schema that nobody else uses."""
    with migrated.on("sqlite", tmp_path) as url:
        yield url


@pytest.fixture(params=BACKENDS)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database that nobody else uses, likewise."""
    with database_on(request.param, tmp_path, POSTGRESQL) as url:
        yield url


@pytest.fixture
def redis_url() -> str:
    """A Redis that the tests may write to."""
    if REDIS is None:
        pytest.skip("TETHER_TEST_REDIS_URL names no Redis")
    return REDIS


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server for the whole run."""
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a prefix in a new bucket, with the environment that reaches it."""
    point_at(monkeypatch, s3_endpoint)
    return f"s3://{make_bucket(s3_endpoint)}/some/prefix"
