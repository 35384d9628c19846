"""A pass over many rows, each in a transaction of its own."""

import logging
from collections.abc import Callable, Iterable

from sqlalchemy.orm import Session

from app.database import DATABASE_AWAY, Database, unit_of_work
from app.errors import LeaseLost

log = logging.getLogger(__name__)


def do_each(
    database: Database, work_ids: Iterable[str], act: Callable[[Session, str], None], what: str
) -> None:
    """Act on one piece of work after the other; one that cannot be understood does not keep the others from their turn.

    `what` says in the log what could not be done. Raises DATABASE_AWAY where that is so, for every row.
    """
    for work_id in work_ids:
        try:
            with unit_of_work(database) as session:
                act(session, work_id)
        except LeaseLost as error:
            log.info("somebody else was quicker: %s", error)
        except DATABASE_AWAY:
            raise
        except Exception:
            log.exception("%s cannot be %s", work_id, what)
