"""How work ends, or goes back to the queue: the same for its owner, the reconciler and the API.

Whoever calls these holds the current epoch of the row, by lease or by having raised it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from app import queue
from app.audit.repository import append_leaf
from app.domain.gate import PASSING, describe
from app.domain.job import Desired, State, WorkKind
from app.jobs import repository
from app.models.base import now_ms, utc_now
from app.models.file import File
from app.models.job import Job
from app.models.work import Work
from app.settings import Settings
from app.webhooks.events import REACHED, announce
from app.work import repository as work_repository

OUT_OF_MEMORY = "out_of_memory"
"""The code of what ends work for which memory has run out, with its micro-batches halved too."""
SPLIT = 2
"""By how much the micro-batches are smaller after memory has run out."""
SAFETY_GATE = "safety_gate"
"""The code of what ends a job that its policy's gate did not let pass."""
Error = Mapping[str, str | None]
"""code, message and param, as the wire shows them."""


def postpone(
    session: Session, settings: Settings, work: Work, *, reason: str, pause_s: float | None = None
) -> None:
    """Give up owned work because of its surroundings; it waits for `pause_s`, by default `requeue_after_s`.

    Such attempts do not count as attempts without progress; they have a budget of their own.
    """
    work.infrastructure_failures += 1
    work.attempts_without_progress = max(0, work.attempts_without_progress - 1)
    session.flush()
    if obey(session, work):
        return
    if work.infrastructure_failures > settings.max_infrastructure_failures:
        message = f"the surroundings failed {work.infrastructure_failures} times; the last: {reason}"
        end(session, work, State.FAILED, {"code": "infrastructure", "message": message, "param": None})
    else:
        _requeue(session, work, reason, pause_s=settings.requeue_after_s if pause_s is None else pause_s)


def note_claim(session: Session, work: Work) -> None:
    """Say in the log of a job that a worker has claimed it. Work of other kinds has no log."""
    job = session.get(Job, work.id)
    if job is not None:
        repository.add_event(session, job, f"A worker takes the job up (attempt {work.attempt})")


def split(session: Session, work: Work, *, reason: str) -> None:
    """Give up owned work for which memory has run out: the next attempt takes micro-batches of half the size.

    That changes no result but by rounding, and costs no budget but its own: where they are halved already, the work fails.
    """
    if obey(session, work):
        return
    if "split" in work.args:
        smaller = (
            "Submit it again with a smaller training.max_seq_length or batch_size, or with a smaller model"
            if work.kind == WorkKind.TRAIN
            else "Ask for it again with shorter rows or a smaller model"
        )
        message = f"memory ran out, and again with micro-batches of half the size ({reason}). {smaller}"
        end(session, work, State.FAILED, {"code": OUT_OF_MEMORY, "message": message, "param": None})
        return
    work.args = {**work.args, "split": SPLIT}
    work.attempts_without_progress = max(0, work.attempts_without_progress - 1)
    session.flush()
    found = (
        f"memory ran out ({reason}); it goes on from its last checkpoint with micro-batches of half the size"
    )
    _requeue(session, work, found, pause_s=0)
    queue.enqueue(session, work.queue, work.id)


def release(session: Session, settings: Settings, work: Work, *, reason: str) -> None:
    """Give up owned work: back to the queue, to a pause, or to its end where the client or the budget says so.

    Work that has failed twice in a row waits for `requeue_after_s`, so that what is poison keeps nobody from a worker.
    """
    if obey(session, work):
        return
    if work.attempts_without_progress >= settings.max_attempts_without_progress:
        message = (
            f"{work.attempts_without_progress} attempts in a row ended without a newer checkpoint"
            f" (the last: {reason}); the log of the worker says why. Mend the cause and ask for it again"
        )
        end(session, work, State.FAILED, {"code": "crash_loop", "message": message, "param": None})
    elif work.attempts_without_progress > 1:
        _requeue(session, work, reason, pause_s=settings.requeue_after_s)
    else:
        _requeue(session, work, reason, pause_s=0)
        queue.enqueue(session, work.queue, work.id)


def put_back(session: Session, work: Work, *, pause_s: float) -> None:
    """Give up owned work: nobody claims it for `pause_s` seconds, and then it is announced again."""
    work_repository.move(session, work, State.QUEUED)
    work_repository.mark_knocked(session, work.id)
    work.not_before_ms = now_ms() + int(pause_s * 1000)
    session.flush()


def obey(session: Session, work: Work) -> bool:
    """Cancel or pause work that is to be; say whether it was."""
    if work.desired == Desired.CANCEL:
        end(session, work, State.CANCELLED, None)
        return True
    if "pause" not in work.args:
        return False
    pause(session, work)
    # Somebody wanted the job to go on before its pause had begun; the pause is on record all the same.
    if work.desired == Desired.RUN:
        resume(session, work, by=work.args["pause"]["resumed_by"])
    return True


def ask_for_pause(session: Session, work: Work, *, by: str, reason: str | None = None) -> None:
    """Note that the work is to pause at its next boundary. `by` is a key's id, or what in the job itself wants it.

    From here on, whoever gives the work up pauses it (`obey`).
    """
    work.args = {**work.args, "pause": {"by": by, "reason": reason}}
    if work.desired == Desired.RUN:
        work.desired = Desired.PAUSE
    session.flush()


def take_back_pause(session: Session, work: Work) -> None:
    """Forget a pause that has not begun."""
    work.args = {name: value for name, value in work.args.items() if name != "pause"}
    session.flush()


def pause(session: Session, work: Work) -> None:
    """Pause a job that is to be: nobody claims it before it is resumed. Its last checkpoint stands."""
    asked = work.args["pause"]
    job = repository.load_job(session, work.id)
    _command(session, work, "pause", by=asked["by"])
    because = f": {asked['reason']}" if asked["reason"] else ""
    level = "warn" if asked["reason"] else "info"
    mark = {"step": job.step, "mark": "policy" if asked["reason"] else "pause", "label": "paused"}
    message = f"The job is paused after step {job.step}{because}"
    repository.add_event(session, job, message, level=level, data=mark)
    work_repository.move(session, work, State.PAUSED)
    announce(session, job.project_id, REACHED[State.PAUSED], job.id)


def resume(session: Session, work: Work, *, by: str) -> None:
    """Let a paused job go on where it was: it goes back to the queue."""
    _command(session, work, "resume", by=by)
    take_back_pause(session, work)
    # Whoever resumes it has mended what made it pause.
    work.infrastructure_failures = 0
    work_repository.move(session, work, State.QUEUED)
    work_repository.mark_knocked(session, work.id)
    queue.enqueue(session, work.queue, work.id)
    job = repository.load_job(session, work.id)
    mark = {"step": job.step, "mark": "pause", "label": "resumed"}
    repository.add_event(session, job, "The job was resumed and is queued", data=mark)


def _command(session: Session, work: Work, command: str, *, by: str) -> None:
    body = {"command": command, "actor": by}
    append_leaf(session, work.id, epoch=work.epoch, kind="cmd", body=body)


def _requeue(session: Session, work: Work, reason: str, *, pause_s: float) -> None:
    put_back(session, work, pause_s=pause_s)
    if work.kind == WorkKind.TRAIN:
        job = repository.load_job(session, work.id)
        repository.add_event(session, job, f"The job goes back to the queue: {reason}", level="warn")


def end(session: Session, work: Work, state: State, error: Error | None) -> None:
    """End work of any kind. A job's record gets its last leaves, and its log says how it ended.

    A job that did well has succeeded once its record is signed (`succeed`).
    """
    if work.kind == WorkKind.TRAIN:
        _end_job(session, repository.load_job(session, work.id), state, error)
        state = State.SIGNING if state is State.SUCCEEDED else state
    elif work.kind == WorkKind.VALIDATE_FILE and error is not None:
        _end_check(session, work, error)
    elif work.kind == WorkKind.EXPORT and error is not None:
        _end_export(session, work, error)
    work_repository.move(session, work, state, error=error)


def _end_check(session: Session, work: Work, error: Error) -> None:
    """Say so in the file that could not be checked: clients wait for it, and jobs do too."""
    file = session.get(File, work.args["file"])
    if file is not None:
        file.status = "error"
        file.status_details = error["message"]


def _end_export(session: Session, work: Work, error: Error) -> None:
    """Say so in the log of the job, which itself is not touched."""
    job = repository.load_job(session, work.args["job"])
    repository.add_event(session, job, f"The export failed: {error['message']}", level="warn")


def _end_job(session: Session, job: Job, state: State, error: Error | None) -> None:
    work = job.work
    if state is State.CANCELLED:
        _command(session, work, "cancel", by=work.args["cancelled_by"])
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
        repository.add_event(session, job, "The adapter is stored; the record of the job is being signed")
        return
    if state is State.CANCELLED:
        repository.add_event(session, job, "The job was cancelled")
    elif error is not None:
        repository.add_event(session, job, f"The job failed: {error['message']}", level="error")
    announce(session, job.project_id, REACHED[state], job.id)


def conclude(session: Session, work: Work) -> None:
    """Let a job whose record is under a signed checkpoint have succeeded, unless its gate holds it.

    What its record says of the gate counts, because that is what was signed. Under a gate a job without a verdict that
    lets it pass is held.
    """
    job = repository.load_job(session, work.id)
    if job.gate is None:
        succeed(session, work)
        return
    found = repository.load_gate_record(session, work)
    if found is not None and found["verdict"] in PASSING:
        succeed(session, work)
    else:
        limits = [] if found is None else found["limits"]
        # Whoever decides sees what the record says.
        job.gate_result = {**(job.gate_result or {}), "verdict": found and found["verdict"], "limits": limits}
        _hold(session, job, limits)


def _hold(session: Session, job: Job, limits: Sequence[Mapping[str, Any]]) -> None:
    broken = [each for each in limits if each["broken"]]
    why = "; ".join(map(describe, broken)) or (
        "its policy has a gate, and its record has no verdict of it that lets the weights leave"
    )
    repository.add_event(
        session,
        job,
        f"The job is held: {why}. A key with the scope jobs:release releases or rejects it",
        level="warn",
        data={"state": State.HELD, "limits": broken},
    )
    announce(session, job.project_id, REACHED[State.HELD], job.id)
    work_repository.move(session, job.work, State.HELD)


def await_release(session: Session, work: Work, *, event: int) -> None:
    """Note that people have released a held job. It has succeeded once that act in the log, by its number, is signed."""
    work.args = {**work.args, "release": {"event": event}}
    session.flush()


def reject(session: Session, work: Work, *, reason: str) -> None:
    """End a held job as failed. Its record is complete and signed; its weights go as those of a deleted model do."""
    job = repository.load_job(session, work.id)
    message = f"rejected while the policy's gate held it: {reason}"
    job.model_deleted_at = utc_now()
    for file_id in job.result_files:
        session.get_one(File, file_id).deleted_at = utc_now()
    repository.add_event(session, job, f"The job failed: {message}", level="error")
    announce(session, job.project_id, REACHED[State.FAILED], job.id)
    error = {"code": SAFETY_GATE, "message": message, "param": None}
    work_repository.move(session, work, State.FAILED, error=error)


def succeed(session: Session, work: Work) -> None:
    """Let a job have succeeded whose record, and release where it was held, are signed: from now on its weights may leave."""
    job = repository.load_job(session, work.id)
    repository.add_event(session, job, f"New fine-tuned model created: {job.fine_tuned_model}")
    repository.add_event(session, job, "The job has successfully completed")
    announce(session, job.project_id, REACHED[State.SUCCEEDED], job.id)
    work_repository.move(session, work, State.SUCCEEDED)
