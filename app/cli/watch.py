"""Waiting for a job to end, and what its end means as an exit code."""

import time
from collections.abc import Iterator
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from app.cli.client import Refused, Server, Unreachable
from app.cli.output import can_draw, clean, err, get_in, state_of

EXIT_CODES = {"succeeded": 0, "failed": 3, "cancelled": 4}
"""By the status with which a job ends."""
EXIT_TIMEOUT = 5
"""The job goes on; only the waiting is over."""
EXIT_PAUSED = 6
"""The job has paused itself, and goes on when a person says so."""
EXIT_HELD = 7
"""The job is done, and its policy's gate keeps what it made until a person releases it."""
POLL_S = 1.0
PATIENCE_S = 60.0
"""A server that is away for less, because it is restarted, ends no wait."""


def wait_for(server: Server, job_id: str, timeout_s: float | None) -> dict[str, Any]:
    """Return a job as soon as it has ended, paused itself or is held, or as it is after the timeout; show its steps meanwhile."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    job: dict[str, Any] = {}
    shown = None
    with Progress(*columns, console=err, transient=True, disable=not can_draw(err)) as progress:
        task = progress.add_task(clean(job_id), total=None)
        for job in poll(server, job_id, timeout_s):
            state = clean(state_of(job))
            done, total = get_in(job, "training", "steps_completed"), get_in(job, "training", "total_steps")
            progress.update(task, description=f"{job_id} {state}", completed=done or 0, total=total)
            # Who waited says how it ended.
            over = job["status"] in EXIT_CODES or waits_for_person(job)
            if state != shown and not over and not can_draw(err):
                err.print(f"{job_id}: {state}")
            shown = state
    return job


def poll(server: Server, job_id: str, timeout_s: float | None) -> Iterator[dict[str, Any]]:
    """Yield a job again and again until it has ended, waits for a person, or the time is over."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    # A server that is away from the start is told at once.
    job = server.get("fine_tuning", "jobs", job_id)
    while True:
        yield job
        left = POLL_S if deadline is None else deadline - time.monotonic()
        if job["status"] in EXIT_CODES or waits_for_person(job) or left <= 0:
            return
        time.sleep(min(POLL_S, left))
        job = ask_patiently(server, "fine_tuning", "jobs", job_id)


def ask_patiently(server: Server, *path: str) -> dict[str, Any]:
    """Return an object, from a server that may be away for a while."""
    given_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            return server.get(*path)
        except (Unreachable, Refused) as error:
            lasting = isinstance(error, Refused) and error.status < 500 and error.status != 429
            if lasting or time.monotonic() > given_up_at:
                raise
        time.sleep(POLL_S)


def exit_code(job: dict[str, Any]) -> int:
    """Return what a command that waited for this job exits with."""
    if is_held(job):
        return EXIT_HELD
    return EXIT_PAUSED if has_paused(job) else EXIT_CODES.get(str(job["status"]), EXIT_TIMEOUT)


def is_deleted(server: Server, job: dict[str, Any]) -> bool:
    """Say whether the model that a job released is gone again."""
    name = job.get("fine_tuned_model")
    if job["status"] != "succeeded" or name is None:
        return False
    try:
        server.get("models", str(name))
    except Refused as error:
        return error.status == 404
    return False


def waits_for_person(job: dict[str, Any]) -> bool:
    """Say whether nothing more happens to a job until a person says so."""
    return has_paused(job) or is_held(job)


def is_held(job: dict[str, Any]) -> bool:
    """Say whether the gate of its policy keeps what a job made, until a person says so. A release only waits for its signature."""
    return state_of(job) == "held" and get_in(job, "safety", "waits_for") is None


def has_paused(job: dict[str, Any]) -> bool:
    """Say whether a job has paused itself. One that a client paused has no reason; that client lets it go on."""
    return job["status"] == "paused" and get_in(job, "safety", "pause_reason") is not None
