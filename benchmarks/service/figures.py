"""The figures: what is asked of the running server, and the bars."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from app.domain.dataset import check_training_lines, read_lines
from benchmarks.service.installation import ROOT, Installation, add_claimed_job, add_running_job, add_steps
from benchmarks.service.trainer import hear, tell, trainers
from benchmarks.speed.results import Figure

MB = 1_000_000
CURL = shutil.which("curl") or "curl"
JOBS = "/v1/fine_tuning/jobs"
STEP_PAUSE_S = 0.25
"""Between two steps of a job that streams follow."""


class Plan(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    """Of each load."""
    connections: int
    steps: int
    streams: int
    upload_bytes: int
    rows_bytes: int
    ledgered_jobs: int
    ledgered_steps: int
    """Of each job."""


QUICK = Plan(2, 2.0, 8, 10_000, 50, 64 * MB, 8 * MB, 4, 100)
FULL = Plan(5, 10.0, 8, 100_000, 200, 1000 * MB, 100 * MB, 4, 1000)


def measure(plan: Plan, server: Installation, group: str, say: Callable[[str], None]) -> Iterator[Figure]:
    """Yield every figure of one installation. Every bar is an upper one, so that rates are given as times."""

    def name(text: str) -> str:
        return f"service_{group.lower()}_{text}"

    heading = f"The service on {group}"
    job_id, _ = add_running_job(server.database, server.settings)
    say("job status")
    loads = [load(plan, server, job_id) for _ in range(plan.rounds)]
    note = (
        f"Load: {plan.connections} connections from another process, {plan.seconds:g} s a round. Streams: of a job that"
        f" records {1 / STEP_PAUSE_S:g} steps a second meanwhile. Ledgered steps: by the trainer's own journal, a process a job."
    )
    values = tuple(1000 / each["rate"] for each in loads)
    yield Figure(name("status_ms"), heading, "job status, time a request under load", values, 1.0, "ms", note)
    values = tuple(each["cpu_ms"] for each in loads)
    yield Figure(
        name("status_cpu"), heading, "job status, CPU of the server a request", values, None, "ms", note
    )
    values = tuple(each["p99_ms"] for each in loads)
    yield Figure(name("status_p99"), heading, "job status, 99th percentile", values, 20.0, "ms", note)
    say("streams")
    loads = [load_beside_streams(plan, server, job_id) for _ in range(plan.rounds)]
    values = tuple(each["p99_ms"] for each in loads)
    title = f"job status while {plan.streams} streams follow a job, 99th percentile"
    yield Figure(name("status_p99_streams"), heading, title, values, 20.0, "ms", note)
    say("risk curve")
    add_steps(server.database, job_id, plan.steps)
    cold, again = curve_times(plan, server, job_id)
    title = f"risk curve of {plan.steps:,} steps to 1,000 points"
    yield Figure(name("curve_cold"), heading, f"{title}, cold", cold, 60.0, "ms")
    yield Figure(name("curve_again"), heading, f"{title}, again", again, 5.0, "ms")
    say("upload")
    seconds, memory = upload_figures(plan, server)
    title = f"upload of {plan.upload_bytes // MB:,} MB"
    yield Figure(name("upload_ms"), heading, f"{title}, time a MB", seconds, 1000 / 150, "ms")
    yield Figure(name("upload_memory"), heading, f"{title}, more memory of the server", memory, 60.0, "MB")
    say("ledgered steps")
    values = tuple(ledgered_ms(plan, server) for _ in range(plan.rounds))
    title = f"appended ledgered step, time a step over {plan.ledgered_jobs} jobs at once"
    yield Figure(name("ledgered_ms"), heading, title, values, 1.0, "ms")


def measure_validation(plan: Plan) -> Figure:
    """Return how fast a training file is checked."""
    values = []
    with tempfile.TemporaryFile() as file:
        row = {
            "messages": [
                {"role": "user", "content": "How? " * 40},
                {"role": "assistant", "content": "So. " * 80},
            ]
        }
        line = json.dumps(row).encode() + b"\n"
        count = plan.rows_bytes // len(line)
        file.writelines(line for _ in range(count))
        for _ in range(plan.rounds):
            file.seek(0)
            began = time.perf_counter()
            check_training_lines(read_lines(file))
            values.append((time.perf_counter() - began) * 1000 / (count * len(line) / MB))
    title = "checking a training file, time a MB"
    return Figure("service_validation_ms", "Data files", title, tuple(values), 25.0, "ms")


def load_beside_streams(plan: Plan, server: Installation, job_id: str) -> dict[str, Any]:
    """Run the load while streams follow another job, whose trainer records steps."""
    followed = add_claimed_job(server.database, server.settings)
    with trainers(server, [followed], int(10 * plan.seconds / STEP_PAUSE_S), STEP_PAUSE_S) as running:
        tell(running)
        found = load(plan, server, job_id, streams=plan.streams, followed=followed)
    # Each stream begins with two, the job and its first lines; the others came while it was open.
    if found["messages"] < plan.streams * (2 + plan.seconds / 2):
        raise RuntimeError(f"the streams fell behind: {found}")
    return found


def load(
    plan: Plan, server: Installation, job_id: str, *, streams: int = 0, followed: str = ""
) -> dict[str, Any]:
    """Run the load in a process of its own and return what it saw, and the server's CPU time a request."""
    wanted = {
        "url": server.url,
        "key": server.key,
        "path": f"{JOBS}/{job_id}",
        "seconds": plan.seconds,
        "connections": plan.connections,
        "streams": streams,
        "stream_path": f"{JOBS}/{followed}/stream",
    }
    before_s = cpu_s(server.pid)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.service.load", json.dumps(wanted)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    if found["failed"] or found["streams"] != streams:
        raise RuntimeError(f"not every request was answered: {found}")
    return {**found, "cpu_ms": (cpu_s(server.pid) - before_s) * 1000 / found["requests"]}


def curve_times(plan: Plan, server: Installation, job_id: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the times of a curve that the server has not made yet, and of one that it has, in milliseconds."""
    cold, again = [], []
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {server.key}"}) as client:
        client.get(f"{JOBS}/{job_id}").raise_for_status()
        for round_ in range(plan.rounds):
            # Another number of points is another reply.
            query = {"max_points": 1000 - 2 * round_}
            for times in (cold, again):
                began = time.perf_counter()
                client.get(f"{JOBS}/{job_id}/risk", params=query).raise_for_status()
                times.append((time.perf_counter() - began) * 1000)
    return tuple(cold), tuple(again)


def upload_figures(plan: Plan, server: Installation) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return milliseconds a megabyte, and by how many megabytes the server grew at most, of uploads as a form."""
    row = json.dumps(
        {"messages": [{"role": "user", "content": "x" * 900}, {"role": "assistant", "content": "y"}]}
    )
    line = row.encode() + b"\n"
    times, grown = [], []
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.writelines(line for _ in range(plan.upload_bytes // len(line)))
        file.flush()
        for _ in range(plan.rounds if plan is QUICK else 2):
            before = memory_mb(server.pid)
            peak = [before]
            stop = threading.Event()
            watcher = threading.Thread(target=_watch, args=(server.pid, peak, stop))
            watcher.start()
            began = time.perf_counter()
            # Curl reads and sends without copying it through Python.
            subprocess.run(
                [
                    CURL,
                    "--silent",
                    "--fail",
                    "--output",
                    "/dev/null",
                    "--config",
                    "-",
                    f"{server.url}/v1/files",
                ],
                input=f'header = "authorization: Bearer {server.key}"\nform = "purpose=fine-tune"\nform = "file=@{file.name}"\n',
                check=True,
                text=True,
            )
            times.append((time.perf_counter() - began) * 1000 / (plan.upload_bytes / MB))
            stop.set()
            watcher.join()
            grown.append(peak[0] - before)
    return tuple(times), tuple(grown)


def _watch(pid: int, peak: list[float], stop: threading.Event) -> None:
    while not stop.wait(0.01):
        peak[0] = max(peak[0], memory_mb(pid))


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024 / MB
    return 0.0


def ledgered_ms(plan: Plan, server: Installation) -> float:
    """Return the time a step of trainers that record at the same time, each in a process and a job of its own."""
    jobs = [add_claimed_job(server.database, server.settings) for _ in range(plan.ledgered_jobs)]
    with trainers(server, jobs, plan.ledgered_steps) as running:
        began = time.perf_counter()
        tell(running)
        hear(running, "done")
        return (time.perf_counter() - began) * 1000 / (len(jobs) * plan.ledgered_steps)
