"""The jobs about which the notary signs nothing while it signs for all others, and why."""

import logging

from app.database import Database, unit_of_work
from app.notary import repository

log = logging.getLogger(__name__)


class RefusedJobs:
    """What one notary has against single jobs. Each is looked at again with the next sweep, for the case that it was mended."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._passed_over: set[str] = set()
        self._noted: dict[str, str] | None = None
        """What the database knows; None before it was told, because it may know of a notary's before this one."""

    def __contains__(self, work_id: object) -> bool:
        return work_id in self._passed_over

    def add(self, work_id: str, reason: str) -> None:
        """Pass a job over, with a line in the log where that is new."""
        if self._reasons.get(work_id) != reason:
            log.error("the notary signs nothing about %s: %s", work_id, reason)
        self._reasons[work_id] = reason
        self._passed_over.add(work_id)

    def look_again(self) -> None:
        """Let every job be looked at as if nothing were known against it."""
        self._passed_over.clear()

    def note(self, database: Database) -> None:
        """Let those who wait for a signature know what is found after a round."""
        self._reasons = {
            work_id: reason for work_id, reason in self._reasons.items() if work_id in self._passed_over
        }
        if self._reasons == self._noted:
            return
        with unit_of_work(database) as session:
            repository.lock_log(session)
            repository.note_refused_jobs(session, self._reasons)
        self._noted = dict(self._reasons)
