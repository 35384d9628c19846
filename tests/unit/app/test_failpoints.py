"""Failpoints: off by default, refused where they cannot be meant, and told where they are armed."""

import ast
import errno
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import doctor
from app.errors import ConfigurationError
from app.failpoints import PLACES, VARIABLE, arm, failpoint, list_armed
from app.settings import load_settings
from tests.support import settings_in

ROOT = Path(__file__).parents[3]
PLACE = "step.before_commit"


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    """Leave nothing armed behind."""
    yield
    arm("")


def test_every_place_is_called_and_every_call_is_a_place() -> None:
    called: Counter[str] = Counter()
    for path in (path for room in ("app", "worker") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "failpoint"
                and path.name != "failpoints.py"
            ):
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{path}: a place is named by a plain string"
                called[name.value] += 1
    assert called == Counter(dict.fromkeys(PLACES, 1)), (
        "a place has no call, or several, or a call has no place"
    )


def test_the_readme_of_the_fault_suite_lists_every_place() -> None:
    text = (ROOT / "tests" / "faults" / "README.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `([a-z]+\.(?!py`)[a-z_]+)` \| (.+) \|$", text, re.MULTILINE)) == PLACES


def test_nothing_happens_where_nothing_is_armed() -> None:
    arm("")
    assert list_armed() == []
    for place in PLACES:
        failpoint(place)


@pytest.mark.parametrize(
    ("specification", "said"),
    [
        ("step.before_comit=kill", "'step.before_comit' is no failpoint"),
        ("kill", "'kill' is no failpoint"),
        (f"{PLACE}", "is not name=action"),
        (f"{PLACE}=kil", "is not name=action"),
        (f"{PLACE}=kill@often", "is not name=action"),
        (f"{PLACE}=sleep", "is not name=action"),
        (f"{PLACE}=sleep:long", "is not name=action"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_arms_nothing(specification: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        arm(f"step.after_commit=kill, {specification}")
    assert list_armed() == []


@pytest.mark.parametrize("action", ["ENOSPC", "EIO"])
def test_an_error_is_raised_at_the_nth_arrival_alone(action: str) -> None:
    arm(f"{PLACE}={action}@2")
    failpoint(PLACE)
    failpoint("step.after_commit")
    with pytest.raises(OSError, match=PLACE) as raised:
        failpoint(PLACE)
    assert raised.value.errno == getattr(errno, action)
    failpoint(PLACE)


def test_every_arrival_can_be_struck() -> None:
    arm(f"{PLACE}=memory@*")
    for _ in range(3):
        with pytest.raises(MemoryError):
            failpoint(PLACE)


def test_once_strikes_one_process_alone(tmp_path: Path) -> None:
    specification = f"{PLACE}=EIO, step.after_commit=EIO, once={tmp_path}"
    arm(specification)
    with pytest.raises(OSError, match=PLACE):
        failpoint(PLACE)
    arm(specification)
    failpoint(PLACE)
    with pytest.raises(OSError, match=r"step\.after_commit"):
        failpoint("step.after_commit")


def test_sleep_waits() -> None:
    arm(f"{PLACE}=sleep:0.2")
    began = time.monotonic()
    failpoint(PLACE)
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize(
    ("action", "code"), [("kill", -signal.SIGKILL), ("segfault", -signal.SIGSEGV), ("exit", 1)]
)
def test_a_process_ends_there(action: str, code: int) -> None:
    assert run("-c", BODY, specification=f"{PLACE}={action}").returncode == code


@pytest.mark.parametrize("action", ["stop", "hang"])
def test_a_process_stands_still_there(action: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", BODY], env=environment(f"{PLACE}={action}"), cwd=ROOT)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
    finally:
        process.kill()
        process.wait()


def test_every_process_refuses_an_unknown_name_at_its_start(tmp_path: Path) -> None:
    for command in (
        ["-m", "app", "migrate", "--home", str(tmp_path)],
        ["-m", "worker.process", "--queue", "cpu"],
    ):
        done = run(*command, specification="step.before_comit=kill")
        assert done.returncode == 1
        assert f"{VARIABLE}: 'step.before_comit' is no failpoint" in done.stderr


def test_the_log_and_the_doctor_say_what_is_armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    armed = f"{PLACE}=kill, begin.after_commit=exit"
    started = run("-m", "app", "migrate", "--home", str(tmp_path), specification=armed)
    assert started.returncode == 0, started.stderr
    assert (
        f"WARNING app.logs: {VARIABLE} makes this process fail at: begin.after_commit, {PLACE}"
        in started.stderr
    )
    arm(armed)
    # The device is looked at by a process that imports torch, which is nothing to what is shown here.
    monkeypatch.setattr(doctor, "DEVICE", """print('{"device": "none", "threads": 1}')""")
    found = {each.what: each for each in doctor.examine(settings_in(tmp_path))}
    assert found["failpoints"].found == f"begin.after_commit, {PLACE}"
    assert found["failpoints"].todo == f"processes fail on purpose; unset {VARIABLE}"
    arm("")
    assert "failpoints" not in {each.what for each in doctor.examine(settings_in(tmp_path))}


def test_settings_from_a_mapping_arm_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{PLACE}=kill")
    load_settings({})
    assert list_armed() == []
    load_settings()
    assert list_armed() == [PLACE]


BODY = f"import os; from app.failpoints import *; arm(os.environ[{VARIABLE!r}]); failpoint({PLACE!r})"


def environment(specification: str) -> dict[str, str]:
    """Return an environment that arms this and nothing else of ours."""
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)} | (
        {VARIABLE: specification} if specification else {}
    )


def run(*arguments: str, specification: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python with failpoints."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(specification),
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
