"""How work ends, or goes back to the queue: the same for its owner, the reconciler and the API.

Whoever calls these holds the current epoch of the row, by lease or by having raised it.
"""

from collections.abc import Mapping

from sqlalchemy.orm import Session

from app import queue
from app.audit.repository import append_leaf
from app.domain.job import Desired, State, WorkKind
from app.jobs import repository
from app.models.file import File
from app.models.job import Job
from app.models.work import Work
from app.settings import Settings
from app.work import repository as work_repository

Error = Mapping[str, str | None]
"""code, message and param, as the wire shows them."""


def postpone(session: Session, settings: Settings, work: Work, *, reason: str) -> None:
    """Give up owned work because of its surroundings; it is announced again after a while.

    Such attempts do not count as attempts without progress; they have a budget of their own.
    """
    work.infrastructure_failures += 1
    work.attempts_without_progress = max(0, work.attempts_without_progress - 1)
    session.flush()
    if work.desired == Desired.CANCEL:
        end(session, work, State.CANCELLED, None)
    elif work.infrastructure_failures > settings.max_infrastructure_failures:
        message = f"the surroundings failed {work.infrastructure_failures} times; the last: {reason}"
        end(session, work, State.FAILED, {"code": "infrastructure", "message": message, "param": None})
    else:
        _requeue(session, work, reason)


def release(session: Session, settings: Settings, work: Work, *, reason: str) -> None:
    """Give up owned work: back to the queue, or to its end where the client or the budget says so."""
    if work.desired == Desired.CANCEL:
        end(session, work, State.CANCELLED, None)
    elif work.attempts_without_progress >= settings.max_attempts_without_progress:
        message = (
            f"{work.attempts_without_progress} attempts in a row ended without a newer checkpoint"
            f" (the last: {reason}); the log of the worker says why. Mend the cause and ask for it again"
        )
        end(session, work, State.FAILED, {"code": "crash_loop", "message": message, "param": None})
    else:
        _requeue(session, work, reason)
        queue.enqueue(session, work.queue, work.id)


def _requeue(session: Session, work: Work, reason: str) -> None:
    work_repository.move(session, work, State.QUEUED)
    work_repository.mark_knocked(session, work.id)
    if work.kind == WorkKind.TRAIN:
        job = repository.load_job(session, work.id)
        repository.add_event(session, job, f"The job goes back to the queue: {reason}", level="warn")


def end(session: Session, work: Work, state: State, error: Error | None) -> None:
    """End work of any kind. A job's record gets its last leaves, and its log says how it ended."""
    if work.kind == WorkKind.TRAIN:
        _end_job(session, repository.load_job(session, work.id), state, error)
    elif work.kind == WorkKind.VALIDATE_FILE and error is not None:
        _end_check(session, work, error)
    work_repository.move(session, work, state, error=error)


def _end_check(session: Session, work: Work, error: Error) -> None:
    """Say so in the file that could not be checked: clients wait for it, and jobs do too."""
    file = session.get(File, work.args["file"])
    if file is not None:
        file.status = "error"
        file.status_details = error["message"]


def _end_job(session: Session, job: Job, state: State, error: Error | None) -> None:
    work = job.work
    if state is State.CANCELLED:
        body = {"command": "cancel", "actor": work.args["cancelled_by"]}
        append_leaf(session, job.id, epoch=work.epoch, kind="cmd", body=body)
    append_leaf(
        session,
        job.id,
        epoch=work.epoch,
        kind="job.end",
        body={
            "state": state,
            "error": error["code"] if error else None,
            "steps": job.step,
            "trained_tokens": job.trained_tokens or 0,
        },
    )
    if state is State.SUCCEEDED:
        repository.add_event(session, job, f"New fine-tuned model created: {job.fine_tuned_model}")
        repository.add_event(session, job, "The job has successfully completed")
    elif state is State.CANCELLED:
        repository.add_event(session, job, "The job was cancelled")
    elif error is not None:
        repository.add_event(session, job, f"The job failed: {error['message']}", level="error")
