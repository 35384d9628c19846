"""Holding a lease: a thread renews it, and the work stops where it cannot be renewed."""

import logging
import os
import threading
import time

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.database import Database, unit_of_work
from app.domain.job import Desired, State
from app.errors import LeaseLost
from app.models.work import Work
from app.settings import Settings
from app.work import repository

log = logging.getLogger(__name__)

LOST = 74
"""Exit code of a process that lost its lease while it could not stop by itself."""


class Lease:
    """One claimed row of work, under one epoch, for as long as the heartbeat lasts."""

    def __init__(self, database: Database, settings: Settings, work: Work) -> None:
        self.database = database
        self.work_id = work.id
        self.epoch = work.epoch
        self.desired = Desired(work.desired)
        """What the client wants, as of the last heartbeat."""
        self._settings = settings
        self._renewed_at = time.monotonic()
        self._released = threading.Event()
        self._taken = False
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing; the work is ended, or is to be given back."""
        self._released.set()
        self._thread.join()

    def check(self) -> None:
        """Raise LeaseLost where the work was taken over, or the lease may run out before the next renewal."""
        silent_s = time.monotonic() - self._renewed_at
        if self._taken or silent_s > 0.75 * self._settings.lease_s:
            raise LeaseLost(f"{self.work_id}: the lease under epoch {self.epoch} was lost")

    def load(self, session: Session) -> Work:
        """Return the row, locked and fenced: raises LeaseLost under another epoch."""
        work = repository.get_work(session, self.work_id, lock=True)
        if work is None or work.epoch != self.epoch:
            raise LeaseLost(f"{self.work_id} is no longer owned under epoch {self.epoch}")
        return work

    def move(self, after: State) -> None:
        """Move the row to another state, in a transaction of its own."""
        with unit_of_work(self.database) as session:
            repository.move(session, self.load(session), after)

    def _beat(self) -> None:
        lease_ms = int(self._settings.lease_s * 1000)
        while not self._released.wait(self._settings.heartbeat_s):
            try:
                # The time before the request counts: the database may have granted the lease that early.
                asked_at = time.monotonic()
                with unit_of_work(self.database) as session:
                    self.desired = repository.renew(session, self.work_id, self.epoch, lease_ms=lease_ms)
                self._renewed_at = asked_at
            except LeaseLost as error:
                if not self._released.is_set():
                    log.warning("%s", error)
                    self._taken = True
                return
            except SQLAlchemyError as error:
                log.warning("the lease cannot be renewed (%s)", type(error).__name__)
            if time.monotonic() - self._renewed_at > self._settings.lease_s:
                # The main thread may hang in a step that will not end; nothing it does counts any more.
                log.error("the lease of %s ran out; exiting", self.work_id)
                os._exit(LOST)
