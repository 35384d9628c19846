"""Each protection is taken out of a copy of the tree, and the suite must go red."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.faults.installation import kill_session
from tests.faults.sabotage import PROTECTIONS, Protection

ROOT = Path(__file__).parents[2]
COPIED = ("app", "worker", "migrations", "tests", "docs")
FILES = ("pyproject.toml", "README.md", "docker-compose.yml", "Dockerfile")

pytestmark = pytest.mark.timeout(1200)


class Copy:
    """A copy of the tree in which tests run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COPIED:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            shutil.copy(ROOT / name, folder / name)
        self.printed, self.report = folder / "printed", folder / "report.xml"
        self.runner = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forked_pytest", str(self.printed), str(self.report)],
            env=self.environment(),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def close(self) -> None:
        """End what runs the tests, in the middle of one if need be."""
        kill_session(self.runner)
        for pipe in (self.runner.stdin, self.runner.stdout):
            assert pipe is not None
            pipe.close()

    def environment(self) -> dict[str, str]:
        """Return an environment in which every process, wherever it starts, imports the copy."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        # What is not edited is compiled once, whatever somebody prefers for the tree itself.
        ours.pop("PYTHONDONTWRITEBYTECODE", None)
        return {**ours, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}

    def imported_from(self) -> list[str]:
        """Return where a process that starts somewhere else finds the packages."""
        script = "import app, worker, migrations, tests; print(*(each.__path__[0] for each in (app, worker, migrations, tests)))"
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=self.environment(),
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    def run(self, tests: Iterable[str]) -> dict[str, str]:
        """Run tests and return what came of each: passed, failed or skipped."""
        self.report.unlink(missing_ok=True)
        wanted = sorted(set(tests))
        assert self.runner.stdin is not None
        assert self.runner.stdout is not None
        self.runner.stdin.write(json.dumps(wanted) + "\n")
        self.runner.stdin.flush()
        code = self.runner.stdout.readline().strip()
        printed = self.printed.read_text(encoding="utf-8", errors="replace")
        # 0: all passed, 1: some failed. Anything else says nothing about the protection.
        assert code in ("0", "1"), f"pytest ended with code {code or 'unknown'}: {printed}"
        assert self.report.exists(), f"pytest reported nothing: {printed}"
        found = {}
        for case in ElementTree.parse(self.report).iter("testcase"):  # noqa: S314  (It was written by pytest.)
            place = f"{case.attrib['classname']}.{case.attrib['name']}"
            outcomes = {each.tag for each in case} & {"failure", "error", "skipped"}
            # A test that fails may leave something open besides, which is reported as another case of it.
            if found.get(place) != "failure":
                found[place] = "failure" if "failure" in outcomes else next(iter(outcomes), "passed")
        assert len(found) == len(wanted), printed
        return {test: found[_place_of(test)] for test in wanted}

    def edit(self, protection: Protection) -> str:
        """Take a protection out, and return what the file was."""
        path = self.folder / protection.path
        text = path.read_text(encoding="utf-8")
        assert text.count(protection.before) == 1, (
            f"{protection.path} has this {text.count(protection.before)} times: {protection.before}"
        )
        self._write(path, text.replace(protection.before, protection.after))
        return text

    def mend(self, protection: Protection, text: str) -> None:
        """Put a file back."""
        self._write(self.folder / protection.path, text)

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        # What was compiled is known by its second and its length, which may be those of before.
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()


def _place_of(test: str) -> str:
    """Return a test as reports name it."""
    path, _, name = test.partition("::")
    return ".".join([path.removesuffix(".py").replace("/", "."), *name.split("::")])


def _selected(session: pytest.Session) -> list[Protection]:
    found = (getattr(item, "callspec", None) for item in session.items if item.path == Path(__file__))
    return [spec.params["protection"] for spec in found if spec is not None]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    """A copy from which nothing was taken."""
    copy = Copy(tmp_path_factory.mktemp("copy"))
    yield copy
    copy.close()


@pytest.fixture(scope="module")
def unedited(copy: Copy, request: pytest.FixtureRequest) -> dict[str, str]:
    """What comes of the tests as long as nothing is taken out."""
    folders = copy.imported_from()
    assert all(Path(each).is_relative_to(copy.folder) for each in folders), folders
    return copy.run(test for protection in _selected(request.session) for test in protection.tests)


@pytest.mark.parametrize(
    "protection",
    [
        pytest.param(each, id=each.name, marks=[pytest.mark.short] if each == PROTECTIONS[0] else [])
        for each in PROTECTIONS
    ],
)
def test_suite_goes_red_without(protection: Protection, copy: Copy, unedited: dict[str, str]) -> None:
    outcomes = {unedited[test] for test in protection.tests}
    if outcomes == {"skipped"}:
        pytest.skip(f"this machine cannot run {', '.join(protection.tests)}")
    assert outcomes == {"passed"}
    before = copy.edit(protection)
    try:
        without = copy.run(protection.tests)
    finally:
        copy.mend(protection, before)
    assert set(without.values()) == {"failure"}, without
