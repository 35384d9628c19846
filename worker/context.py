"""What every kind of work is given: the database, the settings, its lease, and whether to stop."""

from app.database import Database
from app.domain.job import Desired
from app.settings import Settings
from worker.lease import Lease


class Preempted(Exception):
    """The worker was told to stop; the work goes back to the queue as it stands."""


class Context:
    """The surroundings of one piece of work."""

    def __init__(self, database: Database, settings: Settings, lease: Lease) -> None:
        self.database = database
        self.settings = settings
        self.lease = lease
        self.preempted = False

    def preempt(self) -> None:
        """Ask the work to stop at its next boundary."""
        self.preempted = True

    @property
    def cancelled(self) -> bool:
        """Whether the client wants the work to end."""
        return self.lease.desired is Desired.CANCEL

    def check(self) -> None:
        """Raise where the work must stop here: LeaseLost or Preempted."""
        self.lease.check()
        if self.preempted:
            raise Preempted("told to stop")
