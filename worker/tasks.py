"""The knock: start the process that works, wait for it, and stop it when the worker is told to stop.

A worker that hears no knock looks into the database by itself, so that it needs no broker to find its work.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from celery.signals import worker_shutting_down
from sqlalchemy.exc import SQLAlchemyError

from app.models.base import new_id
from app.settings import Settings
from worker.context import Preempted
from worker.device import NO_DEVICE
from worker.lease import HUNG
from worker.memory import count_oom_kills
from worker.memory_limit import remove_group

log = logging.getLogger(__name__)


class GiveBack(Protocol):
    """Gives back what a dead process owned."""

    def __call__(self, owner: str, reason: str, *, out_of_memory: bool) -> None:
        """Take who the process was, as its work names it, why it died, and whether that was for want of memory."""


class Processes:
    """The process that this worker has started, if one is running."""

    def __init__(
        self,
        settings: Settings,
        queue: str,
        has_work: Callable[[], bool],
        give_back: GiveBack,
        owns: Callable[[str], bool],
    ) -> None:
        """`owns` says whether a process, by the name that its work knows it by, holds a lease of anything."""
        self._settings = settings
        self._queue = queue
        self._has_work = has_work
        self._give_back = give_back
        self._owns = owns
        self._environment = settings.child_environment()
        self._running: subprocess.Popen[bytes] | None = None
        self._draining = False
        self._lock = threading.Lock()
        self._busy = threading.Lock()
        """Held by whoever runs processes: a knock, or the look that needs none."""

    def wake(self, work_id: str) -> None:
        """Run processes until the database has no work for this queue; each takes the work whose turn it is.

        Which work the knock is about does not matter. While a long job runs, the same knock comes again and again;
        asking first costs less than a process. After a failure nothing is started before the next knock or look.
        """
        log.debug("woken for %s", work_id)
        with self._busy:
            self._work_off()

    def look_for_work(self, stop: threading.Event) -> None:
        """Look for work every `requeue_after_s` until told to stop, whoever is or is not there to knock."""
        while not stop.wait(self._settings.requeue_after_s):
            if self._busy.acquire(blocking=False):
                try:
                    self._work_off()
                except Exception:
                    log.exception("a look for work was cut off; trying again")
                finally:
                    self._busy.release()

    def _work_off(self) -> None:
        try:
            while self._has_work():
                if self._run() != 0:
                    return
        except SQLAlchemyError as error:
            log.warning("the database cannot be asked for work (%s); trying again", type(error).__name__)

    def _run(self) -> int:
        with self._lock:
            if self._draining:
                return Preempted.exit_code
            # Process ids come again, and are the same in two containers; this name does not.
            owner = f"{socket.gethostname()}:{new_id('process-')}"
            killed_before = count_oom_kills()
            process = start_process(self._queue, self._environment, owner)
            self._running = process
        if self._draining:
            # The shutdown came while the process was being started and did not see it.
            process.send_signal(signal.SIGTERM)
        code = self._wait(process, owner)
        try:
            oom_kills = end_remains(process.pid, owner)
        except Exception:
            log.exception("what the process %d has left behind cannot be ended", process.pid)
            oom_kills = 0
        with self._lock:
            self._running = None
        if code == Preempted.exit_code:
            log.info("the work was stopped after its checkpoint and goes on later")
        elif code == NO_DEVICE:
            log.info("every GPU of this machine is taken; the work waits, and costs no attempt")
        elif code != 0:
            log.warning("the process of the queue %s ended with code %d", self._queue, code)
            lacked_memory = code == -signal.SIGKILL and (oom_kills > 0 or killed_before != count_oom_kills())
            try:
                self._give_back(owner, f"its process {self._tell(code)}", out_of_memory=lacked_memory)
            except Exception:
                log.exception("the work of a dead process waits for its lease")
        return code

    def _wait(self, process: "subprocess.Popen[bytes]", owner: str) -> int:
        """Wait for a process to end. One that has had no work for too long, and is still there, is killed.

        It is stopped, or stuck where no thread of its own can end it, and keeps the device from whoever comes next. One
        that lost its work has a whole lease to end. One that never had any has the time in which work is to get somewhere.
        """
        since, patience_s = time.monotonic(), self._settings.stall_s
        lacks = "taken no work"
        while True:
            try:
                return process.wait(timeout=self._settings.heartbeat_s)
            except subprocess.TimeoutExpired:
                try:
                    owns = self._owns(owner)
                except SQLAlchemyError:
                    # Nothing is known; that is no reason to kill anything.
                    continue
                except Exception:
                    # Whoever stops waiting lets a second process start beside this one.
                    log.exception("it cannot be found out whether the process %d has work", process.pid)
                    continue
                if owns:
                    since, patience_s = time.monotonic(), self._settings.lease_s
                    lacks = "lost its work"
                elif time.monotonic() - since > patience_s:
                    log.error("the process %d has %s and does not end; killing it", process.pid, lacks)
                    process.kill()

    def _tell(self, code: int) -> str:
        if code < 0:
            return f"was killed by signal {-code}"
        if code == HUNG:
            return f"hung: its work got nowhere for {self._settings.stall_s:g} s"
        return f"ended with code {code}"

    def drain_on_shutdown(self) -> None:
        """Make a shutdown of the worker stop the process; it saves a checkpoint and gives its work back."""
        worker_shutting_down.connect(self.drain, weak=False)

    def drain(self, **_: Any) -> None:
        """Start nothing more, and have the process that runs give its work back."""
        # This runs inside a signal handler of the main thread, so it must not wait for the lock.
        self._draining = True
        process = self._running
        if process is not None:
            process.send_signal(signal.SIGTERM)


def end_remains(pid: int, owner: str) -> int:
    """End what a dead process has left behind: its process group, and its control group where it had one.

    Nothing of it may go on, or keep the memory of a GPU. Returns how many of it were killed for want of memory.
    """
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    return remove_group(owner)


def start_process(queue: str, environment: dict[str, str], owner: str) -> subprocess.Popen[bytes]:
    """Start `worker.process` in a process group of its own. It dies with the process that started it."""
    command = [sys.executable, "-m", "worker.process", "--queue", queue, "--owner", owner]
    return subprocess.Popen([*command, "--parent", str(os.getpid())], env=environment, start_new_session=True)
