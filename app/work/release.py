"""The loop that lets jobs have succeeded, or be held, once the notary has signed their record or their release.

Any number may run: each release is a compare-and-set. It is not the notary's, which changes nothing but its own log.
"""

import logging
import threading

from sqlalchemy.exc import SQLAlchemyError

from app.database import Database, read_only, unit_of_work
from app.domain.job import State, waits_for_its_release
from app.errors import LeaseLost
from app.notary.repository import is_release_signed, list_signed
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


def release_signed(database: Database) -> None:
    """Let every job whose whole record is under a signed checkpoint have succeeded, or be held."""
    with read_only(database) as session:
        signed = list_signed(session)
    for work_id in signed:
        try:
            with unit_of_work(database) as session:
                work = get_work(session, work_id)
                if work is not None and work.state == State.SIGNING:
                    conclude(session, work)
        except LeaseLost as error:
            log.info("somebody else was quicker: %s", error)


def release_approved(database: Database) -> None:
    """Let every held job have succeeded whose release is approved and under a signed checkpoint."""
    with read_only(database) as session:
        approved = [
            work.id
            for work in list_state(session, State.HELD)
            if waits_for_its_release(work.state, work.args)
            and is_release_signed(session, work.args["release"]["event"], work.id)
        ]
    for work_id in approved:
        try:
            with unit_of_work(database) as session:
                # Somebody may just reject it.
                work = get_work(session, work_id, lock=True)
                if work is not None and waits_for_its_release(work.state, work.args):
                    succeed(session, work)
        except LeaseLost as error:
            log.info("somebody else was quicker: %s", error)
