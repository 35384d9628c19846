"""Held jobs: who may release or reject one. Whatever is decided is in the installation's log, with its reason's digest."""

import hashlib
from collections.abc import Sequence

from sqlalchemy.orm import Session

from app.auth import Caller
from app.domain.job import State, waits_for_its_release
from app.domain.scopes import Scope
from app.errors import Conflict, PermissionDenied
from app.jobs import repository
from app.keys.repository import list_line, list_usable_keys
from app.models.base import utc_now
from app.models.job import Job, JobDecision
from app.notary.repository import RELEASED, add_event
from app.work import repository as work_repository
from app.work import service as work_service

APPROVED, REJECTED = "approved", "rejected"


def release_job(session: Session, caller: Caller, job: Job, reason: str) -> None:
    """Approve the release of a held job. With the last approval needed it is released once the notary has signed that.

    Raises Conflict where the job is not held or the caller has decided already, and PermissionDenied where the policy
    wants somebody else.
    """
    _lock_held(session, job)
    if waits_for_its_release(job.work.state, job.work.args):
        raise Conflict(
            f"the release of {job.id} is approved and waits for the notary's signature; nothing more is needed",
            code="already_approved",
        )
    check_other_person(session, caller, job, needs=(Scope.JOBS_RELEASE,))
    decided = {decision.key_id for decision in job.decisions}
    if decided & list_line(session, caller.key_id):
        raise Conflict(
            f"this key has approved the release of {job.id} already; the policy asks for another person's",
            code="already_approved",
        )
    digest = _decide(session, caller, job, APPROVED, reason)
    add_event(session, "job.release.approved", actor=caller.key_id, subject=job.id, sha256=digest)
    missing = count_missing(session, job)
    left = f"{missing} more needed" if missing else "the weights leave once the notary has signed the release"
    repository.add_event(session, job, f"The release was approved by {caller.key_id}: {reason}; {left}")
    if not missing:
        released = add_event(session, RELEASED, actor=caller.key_id, subject=job.id, sha256=digest)
        session.flush()
        work_service.await_release(session, job.work, event=released.number)


def reject_job(session: Session, caller: Caller, job: Job, reason: str) -> None:
    """End a held job as failed. One person is enough. Raises Conflict where the job is not held."""
    _lock_held(session, job)
    digest = _decide(session, caller, job, REJECTED, reason)
    add_event(session, "job.rejected", actor=caller.key_id, subject=job.id, sha256=digest)
    work_service.reject(session, job.work, reason=reason)


def check_other_person(session: Session, caller: Caller, job: Job, *, needs: Sequence[Scope]) -> None:
    """Raise PermissionDenied where the policy asks for a second person and the caller submitted the job.

    `needs` are the scopes of what the caller wants to do, which the other person must have.
    """
    submitter = job.work.args["actor"]
    if (job.gate or {}).get("second_person") and submitter in list_line(session, caller.key_id):
        scopes = " and ".join(repr(scope.value) for scope in needs)
        raise PermissionDenied(
            f"the policy asks for a second person: the key that submitted {job.id} cannot approve it; another one with"
            f" the scope{'s' if len(needs) > 1 else ''} {scopes} can"
        )


def count_missing(session: Session, job: Job) -> int:
    """Return how many approvals a held job still needs.

    An approval counts while its key, or one that it was rotated to, can be used: who was shut out approves nothing.
    """
    needed = 2 if (job.gate or {}).get("second_person") else 1
    approved = [decision.key_id for decision in job.decisions if decision.decision == APPROVED]
    counted = [
        key_id for key_id in approved if list_usable_keys(session, list_line(session, key_id), utc_now())
    ]
    return max(0, needed - len(counted))


def _lock_held(session: Session, job: Job) -> None:
    work = work_repository.get_work(session, job.id, lock=True)
    if work is None or work.state != State.HELD:
        raise Conflict(
            f"the job {job.id} is not held: its state is {work.state if work else 'unknown'}; only a held job is released"
            " or rejected",
            code="job_not_held",
        )
    session.refresh(job, ["decisions"])


def _decide(session: Session, caller: Caller, job: Job, decision: str, reason: str) -> str:
    """Keep a decision, and return the digest of its reason."""
    job.decisions.append(
        JobDecision(
            project_id=job.project_id,
            job_id=job.id,
            key_id=caller.key_id,
            decision=decision,
            reason=reason,
            created_at=utc_now(),
        )
    )
    session.flush()
    return hashlib.sha256(reason.encode("utf-8")).hexdigest()
