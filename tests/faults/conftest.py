"""Fixtures of the fault suite: the seed, servers of its own, templates to copy, an installation with its desk."""

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.installation import (
    Installation,
    Template,
    desk,
    installed,
    load_template,
    move_template,
    reference_run,
)
from tests.faults.servers import PostgreSQL, Redis, postgresql, redis

HERE = Path(__file__).parent
SEED_VARIABLE = "TETHER_TEST_FAULTS_SEED"
# Processes that share the tests have it from the first of them.
SEED = int(os.environ.setdefault(SEED_VARIABLE, str(random.SystemRandom().randrange(2**32))))


def pytest_report_header() -> str:
    """Say by which seed everything random can be had again."""
    return f"faults: seed {SEED}; to repeat: {SEED_VARIABLE}={SEED}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave all but the short form out, unless the whole suite was asked for by `--faults` or a test by its name."""
    if config.getoption("faults") or any("::" in each for each in config.args):
        return
    left_out = [
        item for item in items if HERE in item.path.parents and item.get_closest_marker("short") is None
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """A source of random choices, the same for a test under the same seed."""
    print(f"to repeat: {SEED_VARIABLE}={SEED}")
    return random.Random(f"{SEED} {request.node.nodeid}")  # noqa: S311


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """A PostgreSQL of this run's own. A test that stops it starts it again."""
    with postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis of this run's own, likewise."""
    with redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """An installation on SQLite and files, to be copied. Processes that share the tests share it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return load_template(folder / "template-sqlite")


@pytest.fixture(scope="session")
def postgresql_template(sqlite_template: Template, postgresql_server: PostgreSQL) -> Template:
    """The same on PostgreSQL, on a server of this process's own."""
    return move_template(sqlite_template, postgresql_server)


@pytest.fixture(params=["sqlite", "postgresql"])
def template(request: pytest.FixtureRequest) -> Template:
    """Each of the two, one after the other."""
    found: Template = request.getfixturevalue(f"{request.param}_template")
    return found


class Running:
    """Copies of the templates with their whole desk in threads, one of each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copies: dict[Template, tuple[Installation, ExitStack]] = {}

    def get(self, template: Template) -> Installation:
        """Return the copy of a template; whoever comes first has it made."""
        if template not in self._copies:
            with ExitStack() as stack:
                copy = stack.enter_context(installed(template, self._folder))
                stack.enter_context(desk(copy))
                self._copies[template] = (copy, stack.pop_all())
        return self._copies[template][0]

    def close(self, template: Template) -> None:
        """End the copy of a template."""
        self._copies.pop(template)[1].close()

    def close_all(self) -> None:
        """End every copy."""
        for template in list(self._copies):
            self.close(template)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """What runs for the tests of a module."""
    running = Running(tmp_path_factory.mktemp("running"))
    yield running
    running.close_all()


@pytest.fixture
def installation(template: Template, running: Running) -> Iterator[Installation]:
    """A copy of the template with its whole desk in threads; the test starts trainers.

    The tests of a module share it: to start one takes as much as to train a short job. A test that leaves a job behind,
    as one that fails does, takes it along.
    """
    copy = running.get(template)
    # What is looked for in it is to be of this test.
    copy.log.write_bytes(b"")
    yield copy
    copy.end_processes()
    if not copy.is_idle():
        running.close(template)


@pytest.fixture
def reference(template: Template, tmp_path: Path) -> bytes:
    """The adapter of the usual job when nothing happens to it."""
    return reference_run(template, tmp_path)
