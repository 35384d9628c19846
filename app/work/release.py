"""The loop that lets jobs have succeeded, or be held, once the notary has signed their record or their release.

Any number may run: each release is a compare-and-set. It is not the notary's, which changes nothing but its own log.
"""

import logging
import threading

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.database import Database, read_only
from app.domain.job import State, waits_for_its_release
from app.failpoints import failpoint
from app.models.work import Work
from app.notary.repository import is_release_signed, list_signed
from app.work.one_by_one import do_each
from app.work.repository import get_work, list_state
from app.work.service import conclude, succeed

log = logging.getLogger(__name__)

POLL_S = 0.5


def run_releases(database: Database, stop: threading.Event) -> None:
    """Release what is signed until told to stop; a database that is away is waited for."""
    while not stop.wait(POLL_S):
        try:
            release_signed(database)
            release_approved(database)
        except SQLAlchemyError as error:
            log.warning("the database cannot be used (%s); trying again", type(error).__name__)
        except Exception:
            log.exception("a round of releases was cut off; trying again")


def release_signed(database: Database) -> None:
    """Let every job whose whole record is under a signed checkpoint have succeeded, or be held."""
    with read_only(database) as session:
        signed = list_signed(session)
    do_each(database, signed, _conclude, "released")


def release_approved(database: Database) -> None:
    """Let every held job have succeeded whose release is approved and under a signed checkpoint."""
    with read_only(database) as session:
        approved = [work.id for work in list_state(session, State.HELD) if _is_approved(session, work)]
    do_each(database, approved, _succeed_approved, "released")


def _is_approved(session: Session, work: Work) -> bool:
    try:
        return waits_for_its_release(work.state, work.args) and is_release_signed(
            session, work.args["release"]["event"], work.id
        )
    except (LookupError, TypeError, ValueError):
        log.exception("it cannot be understood whether %s is to be released", work.id)
        return False


def _conclude(session: Session, work_id: str) -> None:
    work = get_work(session, work_id)
    if work is not None and work.state == State.SIGNING:
        conclude(session, work)
        failpoint("conclude.before_commit")


def _succeed_approved(session: Session, work_id: str) -> None:
    # Somebody may just reject it.
    work = get_work(session, work_id, lock=True)
    if work is not None and waits_for_its_release(work.state, work.args):
        succeed(session, work)
