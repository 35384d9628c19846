"""Nothing outlives what started it: real processes, killed so that they cannot say goodbye."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.serve import prepare
from tests.support import settings_in
from worker.tasks import end_remains, start_process

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a child of its parent's death"
)

DEADLINE_S = 60.0


def lives(pid: int) -> bool:
    """Tell whether a process is there and not only waiting to be counted as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(*pids: int) -> None:
    """Wait until none of these processes lives."""
    deadline = time.monotonic() + DEADLINE_S
    while any(map(lives, pids)):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in pids if lives(pid)]}"
        time.sleep(0.02)


@pytest.fixture
def started() -> Iterator[list[int]]:
    """Processes that a test has started, ended after it whatever came."""
    pids: list[int] = []
    yield pids
    for pid in filter(lives, pids):
        os.kill(pid, signal.SIGKILL)


def start(program: str, **options: object) -> subprocess.Popen[str]:
    """Start a Python program whose output is ours to read."""
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


CHILD = "from worker.orphan import die_with; import os, time; die_with({parent}); print(os.getpid(), flush=True); time.sleep(600)"
PARENT = f"""
import os, subprocess, sys, time
program = {CHILD!r}.format(parent=os.getpid())
subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
time.sleep(600)
"""


def read_pid(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_a_child_dies_with_its_parent(started: list[int]) -> None:
    with start(PARENT) as parent:
        child = read_pid(parent)
        started += [parent.pid, child]
        assert lives(child)
        parent.kill()
        wait_for_end(child)


def test_a_child_whose_parent_is_dead_already_ends_at_once() -> None:
    """The race: the parent dies between the start of the child and its asking to be told."""
    with start("") as dead:
        pass
    with start(CHILD.format(parent=dead.pid)) as child:
        assert child.wait(DEADLINE_S) == 1
        assert child.stdout is not None
        assert child.stdout.read() == ""


ROW_CHECK = """
import os, subprocess, sys
from worker.context import Context
from worker.file_checker import check_apart

class Talking(Context):
    def __init__(self): pass
    def check(self): print(flush=True)

reading, writing = os.pipe()
os.set_inheritable(writing, False)
check_apart(Talking(), open(reading, "rb"))
"""


def test_the_check_of_a_file_dies_with_its_process(started: list[int]) -> None:
    """It waits for rows that never come, as one does that is busy with hostile ones."""
    with start(ROW_CHECK) as process:
        started.append(process.pid)
        assert process.stdout is not None
        process.stdout.readline()
        (child,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        started.append(child)
        command = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        assert "worker.row_check" in command
        # Its interpreter must have come as far as to ask for its parent's death.
        deadline = time.monotonic() + DEADLINE_S
        while not is_limited(child):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        wait_for_end(child)


def is_limited(pid: int) -> bool:
    """Tell whether the check has set its limits, which it does after asking for its parent's death."""
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max address space"):
            return "unlimited" not in line
    return False


def test_a_worker_dies_with_the_service_that_started_it(tmp_path: Path, started: list[int]) -> None:
    settings = settings_in(tmp_path)
    prepare(settings)
    program = (
        "import os, time\n"
        "from app.serve import start_worker\n"
        "print(start_worker('cpu', dict(os.environ)).pid, flush=True)\n"
        "time.sleep(600)"
    )
    with start(program, env=settings.child_environment()) as service:
        worker = read_pid(service)
        started += [service.pid, worker]
        deadline = time.monotonic() + DEADLINE_S
        while not asked_to_die_with_parent(worker):
            assert lives(worker)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        service.kill()
        wait_for_end(worker)


def asked_to_die_with_parent(pid: int) -> bool:
    """Tell whether the worker has come to its own work: Celery's thread pool is there only after the asking."""
    return len(list(Path(f"/proc/{pid}/task").iterdir())) > 1


def test_the_process_that_works_has_a_group_of_its_own(tmp_path: Path, started: list[int]) -> None:
    settings = settings_in(tmp_path)
    prepare(settings)
    process = start_process("cpu", settings.child_environment(), "test")
    started.append(process.pid)
    assert os.getpgid(process.pid) == os.getsid(process.pid) == process.pid
    assert process.wait(DEADLINE_S) == 0


def test_what_a_dead_process_left_in_its_group_is_ended(started: list[int]) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('', flush=True); time.sleep(600)"
    leader = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {stubborn!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)"
    )
    with start(leader, start_new_session=True) as process:
        left = read_pid(process)
        started.append(left)
        process.wait(DEADLINE_S)
        assert lives(left)
        assert end_remains(process.pid, "test") == 0
        wait_for_end(left)
    assert end_remains(process.pid, "test") == 0
