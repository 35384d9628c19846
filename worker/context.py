"""What every kind of work is given: the database, the settings, its lease, and whether to stop."""

from pathlib import Path

from app.database import Database
from app.domain.job import Desired
from app.settings import Settings
from worker.lease import Lease


class Preempted(Exception):
    """The worker was told to stop; the work goes back to the queue as it stands."""

    exit_code = 75
    """Of the process that gave its work back: EX_TEMPFAIL, not a failure."""


class Cancelled(Exception):
    """The client wants the work to end."""


class Paused(Exception):
    """The work is to pause; nobody goes on with it before it is resumed."""


class Context:
    """The surroundings of one piece of work."""

    def __init__(self, database: Database, settings: Settings, lease: Lease, *, split: int = 1) -> None:
        self.database = database
        self.settings = settings
        self.lease = lease
        self.split = split
        """By how much the micro-batches are smaller than usual, because memory has run out before."""
        self.preempted = False
        self.pause_due = False
        """Whether the job itself has asked for a pause."""

    def preempt(self) -> None:
        """Ask the work to stop at its next boundary."""
        self.preempted = True

    @property
    def checkpoint_folder(self) -> Path:
        """Where the checkpoints to resume from lie on this machine. In a bucket there are copies (`worker.checkpoints`)."""
        return self.settings.checkpoints_dir / self.lease.work_id

    @property
    def cancelled(self) -> bool:
        """Whether the client wants the work to end."""
        return self.lease.desired is Desired.CANCEL

    @property
    def pausing(self) -> bool:
        """Whether the client, or the job itself, wants the work to pause."""
        return self.pause_due or self.lease.desired is Desired.PAUSE

    def check(self) -> None:
        """Raise where the work must stop here: LeaseLost, Cancelled, Paused or Preempted."""
        self.lease.check()
        if self.cancelled:
            raise Cancelled("cancelled by the client")
        if self.pausing:
            raise Paused("asked to pause")
        if self.preempted:
            raise Preempted("told to stop")
