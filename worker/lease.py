"""Holding a lease: a thread renews it, another watches the work, and the work stops where it must not go on.

The work says at each of its boundaries that it has got there. Work that gets nowhere for TETHER_STALL_S hangs, and its
process exits, whatever its main thread waits for. All of this is measured by a clock that nobody can set.
"""

import logging
import os
import sys
import threading
import time
import traceback

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.database import Database, unit_of_work
from app.domain.job import Desired, State
from app.errors import LeaseLost
from app.models.work import Work
from app.settings import Settings
from app.work import repository
from worker.walls import check_walls

log = logging.getLogger(__name__)

LOST = 74
"""Exit code of a process that lost its lease while it could not stop by itself."""
HUNG = 70
"""Exit code of a process whose work had got nowhere for TETHER_STALL_S."""
WATCH_INTERVAL_S = 1.0
LAST_WORDS_S = 5.0
"""How long the log may take to be written before a process that hangs exits without it."""


class Lease:
    """One claimed row of work, under one epoch, for as long as the heartbeat lasts."""

    def __init__(self, database: Database, settings: Settings, work: Work) -> None:
        self.database = database
        self.work_id = work.id
        self.epoch = work.epoch
        self.desired = Desired(work.desired)
        """What the client wants, as of the last heartbeat."""
        self._settings = settings
        self._renewed_at = self._advanced_at = time.monotonic()
        self._released = threading.Event()
        self._leaving = self._taken = False
        # Two threads, because the one that asks the database may have to wait for it.
        self._threads = [
            threading.Thread(target=do, name=name, daemon=True)
            for do, name in ((self._beat, "heartbeat"), (self._watch, "watchdog"))
        ]

    def start(self) -> None:
        """Begin to renew, and to watch."""
        self.mark_progress()
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Say that the next transaction ends the work or gives it back: a heartbeat just after it lost nothing.

        Until `stop` the lease is renewed and watched as before, because that transaction may have to wait.
        """
        self._leaving = True

    def stop(self) -> None:
        """Stop renewing; the work is ended, or is to be given back. Stopping twice changes nothing."""
        self._released.set()
        for thread in self._threads:
            thread.join()

    def mark_progress(self) -> None:
        """Say that the work has got somewhere since the last time."""
        self._advanced_at = time.monotonic()

    def check(self) -> None:
        """Mark progress; raise LeaseLost where the work was taken over, or the lease may run out before its renewal.

        Raises WallHit where the process tried what it may not do, whoever swallowed that.
        """
        self.mark_progress()
        check_walls()
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
                if not (self._leaving or self._released.is_set()):
                    log.warning("%s", error)
                    self._taken = True
                return
            except SQLAlchemyError as error:
                log.warning("the lease cannot be renewed (%s)", type(error).__name__)
            except Exception:
                # Without a heartbeat work that is well would be lost.
                log.exception("the lease cannot be renewed")

    def _watch(self) -> None:
        interval_s = min(WATCH_INTERVAL_S, self._settings.heartbeat_s)
        while not self._released.wait(interval_s):
            now = time.monotonic()
            if now - self._renewed_at > self._settings.lease_s:
                # The main thread may hang in a step that will not end; nothing it does counts any more.
                _exit(LOST, f"the lease of {self.work_id} ran out; exiting")
            if now - self._advanced_at > self._settings.stall_s:
                # Whoever started this process gives the work back. The device is free at once.
                _exit(
                    HUNG,
                    f"{self.work_id} has got nowhere for {now - self._advanced_at:.0f} s, more than TETHER_STALL_S allows;"
                    f" exiting. Its threads stand here:\n{_describe_threads()}",
                )


def _describe_threads() -> str:
    """Return the stack of every thread."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


def _exit(code: int, message: str) -> None:
    """End the process at once, after a last line in the log."""
    # The thread that hangs may hold the log's lock.
    last = threading.Thread(target=log.error, args=("%s", message), daemon=True)
    last.start()
    last.join(LAST_WORDS_S)
    os._exit(code)
