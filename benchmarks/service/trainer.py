"""What a trainer writes down, without the training: `python -m benchmarks.service.trainer '{"job": …}'`, a process a job.

It says that it is ready, waits for a line, and records its steps through the trainer's own journal.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.database import Database, open_engine, read_only
from app.domain.training_spec import TrainingSpec
from app.models.job import Job
from app.models.work import Work
from app.settings import load_settings
from benchmarks.service.installation import ROOT, Installation, make_record
from worker.context import Context
from worker.journal import Journal
from worker.lease import Lease
from worker.training.loop import DEFAULT_MICRO_BATCH_TOKENS

WARM_UP = 10
"""Steps before those that are measured: a process's first ones compile what the others use."""


def record(job: str, home: str, database_url: str, steps: int, pause_s: float) -> None:
    """Record the steps of a claimed job as fast as they can be recorded, but for the pauses between them."""
    settings = load_settings({}, home=Path(home), database_url=database_url)
    database = Database(open_engine(database_url), lambda knocks: None)
    with read_only(database) as session:
        work = session.get_one(Work, job)
        spec = TrainingSpec.model_validate(session.get_one(Job, job).spec)
    lease = Lease(database, settings, work)
    lease.start()
    journal = Journal(Context(database, settings, lease), spec, critic_sha256=None, policy_sha256="2" * 64)
    total = WARM_UP + steps
    journal.begin(
        from_step=0,
        total_steps=total,
        checkpoint_sha256=None,
        environment={},
        device="cpu",
        micro_batch_tokens=DEFAULT_MICRO_BATCH_TOKENS,
    )
    chance = random.Random(7)  # noqa: S311 - numbers to write down, no secrets.
    records = [make_record(step, chance) for step in range(1, total + 1)]
    for each in records[:WARM_UP]:
        journal.record_step(each)
    print("ready", flush=True)
    sys.stdin.readline()
    for each in records[WARM_UP:]:
        journal.record_step(each)
        time.sleep(pause_s)
    print("done", flush=True)
    lease.stop()


@contextmanager
def trainers(
    server: Installation, jobs: Sequence[str], steps: int, pause_s: float = 0.0
) -> Iterator[list[subprocess.Popen[str]]]:
    """Yield trainers of claimed jobs that are ready to record, and end them."""
    wanted: dict[str, Any] = {"home": str(server.settings.home), "database_url": server.settings.database_url}
    started: list[subprocess.Popen[str]] = []
    try:
        for job in jobs:
            values = {**wanted, "job": job, "steps": steps, "pause_s": pause_s}
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.service.trainer", json.dumps(values)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            started.append(process)
        hear(started, "ready")
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def tell(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Tell the trainers to record."""
    for process in processes:
        assert process.stdin is not None  # noqa: S101 - they were started with pipes.
        process.stdin.write("go\n")
        process.stdin.flush()


def hear(processes: Sequence[subprocess.Popen[str]], word: str) -> None:
    """Wait until every trainer has said a word. Raises RuntimeError where one says something else, or ends."""
    for process in processes:
        assert process.stdout is not None  # noqa: S101 - as above.
        said = process.stdout.readline().strip()
        if said != word:
            raise RuntimeError(f"a trainer of the benchmark said {said!r} where {word!r} was expected")


if __name__ == "__main__":
    record(**json.loads(sys.argv[1]))
