"""Fault 1, down to the system call: what writes a checkpoint fails, or is the last thing that its process does."""

import itertools
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.faults.checks import end_check, list_leftovers
from tests.faults.installation import ENDED, EVERY_STEP, Installation, join, let_go_on, let_stop, on_sqlite
from worker.training.checkpoint import load_checkpoint

CALLS = {"openat": 9, "write": 8, "fsync": 9, "rename": 1}
"""The calls by which a checkpoint is written, and at least how often each comes."""
ATTACH_S = 20.0

pytestmark = on_sqlite


@pytest.fixture(scope="module")
def strace() -> str:
    """Where strace is. Skips where it is not installed, or may not look at another process."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed")
    done = subprocess.run([program, "-o", "/dev/null", "true"], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    return program


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        *itertools.product(CALLS, ["error=EIO", "signal=KILL"]),
        # A disk is full for what takes room on it.
        ("openat", "error=ENOSPC"),
        ("write", "error=ENOSPC"),
    ],
)
def test_a_call_that_fails_while_a_checkpoint_is_written(
    installation: Installation,
    reference: bytes,
    tmp_path: Path,
    strace: str,
    rng: random.Random,
    call: str,
    fault: str,
) -> None:
    before = list_leftovers(installation)
    job_id = installation.submit(**EVERY_STEP)
    trainer = installation.start_trainer(f"checkpoint.before_write=stop@{rng.randint(1, 3)}")
    let_stop(installation, trainer)
    nth = rng.randint(1, CALLS[call])
    # The main thread alone; others write to the database meanwhile.
    command = [
        strace,
        "-qq",
        "-p",
        str(trainer.pid),
        "-o",
        str(tmp_path / "strace.out"),
        "-e",
        f"trace={call}",
    ]
    with (tmp_path / "strace.err").open("w") as said:
        tracer = subprocess.Popen([*command, "-e", f"inject={call}:{fault}:when={nth}"], stderr=said)
    installation.wait(lambda: _is_traced(trainer.pid), "a traced trainer")
    let_go_on(trainer)
    join(trainer, installation)
    tracer.wait(ATTACH_S)
    assert "INJECTED" in (tmp_path / "strace.out").read_text() or fault == "signal=KILL"
    for path in installation.checkpoints(job_id):
        # What has a name is whole.
        load_checkpoint(path)
    state = installation.finish(job_id, until=ENDED | {"paused"})
    if state == "paused":
        # A disk that is full keeps the last checkpoint, and somebody who frees room resumes the job.
        assert fault == "error=ENOSPC"
        assert installation.command(job_id, "resume").status_code == 200
        installation.finish(job_id)
    end_check(installation, job_id, reference=reference)
    if fault != "signal=KILL":
        assert list_leftovers(installation) == before


def _is_traced(pid: int | None) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return "TracerPid:\t0\n" not in status
