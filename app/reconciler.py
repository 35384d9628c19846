"""The loop that repairs: it re-announces work, ends leases that ran out, and starts what was validated.

Any number may run. Each repair is a compare-and-set in a transaction of its own, so two of them cannot do the
same repair twice, and it does not ride on the queue that it repairs.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app import queue
from app.base_models.weights import remove_unwanted_weights
from app.database import Database, read_only
from app.domain.job import Desired, State
from app.failpoints import failpoint
from app.files.repository import get_file
from app.files.service import delete_expired, remove_deleted_bytes
from app.garbage import collect_garbage
from app.idempotency import forget_replies
from app.jobs import repository as jobs
from app.jobs import service
from app.models.work import Work
from app.reports.service import forget_texts
from app.settings import Settings
from app.uploads.service import clean_up as clean_up_uploads
from app.work import repository
from app.work import service as work_service
from app.work.fair_queue import note_turns
from app.work.one_by_one import do_each
from app.work.unsigned import tell_unsigned

log = logging.getLogger(__name__)

Repair = Callable[[Session, Settings, Work], None]


def run_reconciler(database: Database, settings: Settings, stop: threading.Event) -> None:
    """Repair every `reconcile_interval_s` until told to stop, whatever fails; a database that is away is waited for."""
    while not stop.wait(settings.reconcile_interval_s):
        try:
            reconcile(database, settings)
        except SQLAlchemyError as error:
            log.warning("the database cannot be used (%s); trying again", type(error).__name__)
        except Exception:
            log.exception("a round of repairs was cut off; trying again")


def reconcile(database: Database, settings: Settings) -> None:
    """Do one round of repairs."""
    with read_only(database) as session:
        expired = [work.id for work in repository.list_expired(session)]
        overlong = [work.id for work in repository.list_overlong(session, int(settings.lease_s * 1000))]
        unwanted = [work.id for work in repository.list_unwanted(session)]
        validating = [work.id for work in repository.list_state(session, State.VALIDATING)]
        unannounced = [
            work.id for work in repository.list_unannounced(session, int(settings.requeue_after_s * 1000))
        ]
    for work_ids, repair in (
        (expired, _end_lease),
        (overlong, _shorten_lease),
        (unwanted, _stop_unwanted),
        (validating, _advance_validating),
        (unannounced, _announce),
    ):
        do_each(database, work_ids, partial(_repair, settings, repair), "repaired")
    for step in (
        partial(note_turns, database, settings, "gpu"),
        partial(tell_unsigned, database),
        partial(delete_expired, database),
        partial(remove_deleted_bytes, database, settings),
        partial(forget_texts, database),
        partial(clean_up_uploads, database, settings),
        partial(remove_unwanted_weights, database, settings),
        partial(forget_replies, database),
        partial(collect_garbage, database, settings),
    ):
        try:
            step()
        except Exception:
            # What keeps one of them from its work must not keep the others.
            log.exception("%s failed; trying again", step.func.__name__)


def _repair(settings: Settings, repair: Repair, session: Session, work_id: str) -> None:
    work = repository.get_work(session, work_id)
    if work is not None:
        repair(session, settings, work)
        failpoint("repair.before_commit")


def _end_lease(session: Session, settings: Settings, work: Work) -> None:
    """Take work away from an owner that fell silent; end it where the client or the budget says so."""
    if not repository.take_over_expired(session, work):
        return
    log.warning("the lease of %s ran out under epoch %d", work.id, work.epoch - 1)
    work_service.release(session, settings, work, reason="its worker fell silent")


def _shorten_lease(session: Session, settings: Settings, work: Work) -> None:
    """Let nobody wait for what a dead worker's lease became when the database's clock was set back."""
    repository.shorten_lease(session, work, int(settings.lease_s * 1000))


def _stop_unwanted(session: Session, _: Settings, work: Work) -> None:
    """Cancel or pause queued work whose last owner did not see any more that the client wants it."""
    if work.state == State.QUEUED and work.desired != Desired.RUN and repository.take_over(session, work):
        work_service.obey(session, work)


def _advance_validating(session: Session, _: Settings, work: Work) -> None:
    """Queue a job whose files turned out good; fail one whose file did not."""
    if work.state != State.VALIDATING:
        return
    job = jobs.load_job(session, work.id)
    names = {"training_file": job.training_file, "validation_file": job.validation_file}
    files = {}
    for param, file_id in names.items():
        if file_id is None:
            continue
        file = get_file(session, job.project_id, file_id)
        if file is None or file.status == "error":
            found = (
                "was deleted or has expired"
                if file is None
                else f"cannot be trained on: {file.status_details}"
            )
            error = {
                "code": "invalid_training_file",
                "message": f"{param}: {file_id} {found}",
                "param": param,
            }
            if repository.take_over(session, work):
                work_service.end(session, work, State.FAILED, error)
            return
        files[param] = file
    if all(file.status == "processed" for file in files.values()):
        service.start_validated(session, job, files["training_file"])


def _announce(session: Session, _: Settings, work: Work) -> None:
    if work.state == State.QUEUED:
        work.not_before_ms = None
        repository.mark_knocked(session, work.id)
        queue.enqueue(session, work.queue, work.id)
