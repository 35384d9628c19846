"""Work whose process has died: it is given back as soon as the process that started it sees that."""

import logging

from sqlalchemy.exc import SQLAlchemyError

from app.database import Database, read_only, unit_of_work
from app.errors import LeaseLost
from app.settings import Settings
from app.work import repository
from app.work import service as work_service

log = logging.getLogger(__name__)


def give_back(
    database: Database, settings: Settings, owner: str, reason: str, *, out_of_memory: bool = False
) -> None:
    """Give back what a dead process owned, so that nobody waits for its lease to run out.

    Its epoch is raised first: should anything of it still live, it is fenced. Where the database is away, the lease runs
    out as it does for a machine that died.
    """
    try:
        with read_only(database) as session:
            owned = repository.list_owned(session, owner)
        for work_id in owned:
            with unit_of_work(database) as session:
                work = repository.get_work(session, work_id)
                if work is not None and repository.take_over_from(session, work, owner):
                    log.warning("%s is given back: %s", work_id, reason)
                    if out_of_memory:
                        work_service.split(session, work, reason=reason)
                    else:
                        work_service.release(session, settings, work, reason=reason)
    except LeaseLost as error:
        log.info("somebody else was quicker: %s", error)
    except SQLAlchemyError as error:
        log.warning("the work of a dead process waits for its lease (%s)", type(error).__name__)
