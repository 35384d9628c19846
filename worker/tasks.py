"""The knock: start the process that works, wait for it, and stop it when the worker is told to stop."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from celery.signals import worker_shutting_down

from app.models.base import new_id
from app.settings import Settings
from worker.context import Preempted

log = logging.getLogger(__name__)


class Processes:
    """The process that this worker has started, if one is running."""

    def __init__(
        self,
        settings: Settings,
        queue: str,
        has_work: Callable[[], bool],
        give_back: Callable[[str, str], None],
    ) -> None:
        """`give_back` takes who a process was that died, as its work names it, and why it did."""
        self._queue = queue
        self._has_work = has_work
        self._give_back = give_back
        self._environment = settings.child_environment()
        self._running: subprocess.Popen[bytes] | None = None
        self._draining = False
        self._lock = threading.Lock()

    def wake(self, work_id: str) -> None:
        """Run processes until the database has no work for this queue; each takes the work whose turn it is.

        Which work the knock is about does not matter. While a long job runs, the same knock comes again and again;
        asking first costs less than a process. After a failure nothing is started before the next knock.
        """
        log.debug("woken for %s", work_id)
        while self._has_work():
            if self._run() != 0:
                return

    def _run(self) -> int:
        with self._lock:
            if self._draining:
                return Preempted.exit_code
            # Process ids come again, and are the same in two containers; this name does not.
            owner = f"{socket.gethostname()}:{new_id('process-')}"
            process = start_process(self._queue, self._environment, owner)
            self._running = process
        if self._draining:
            # The shutdown came while the process was being started and did not see it.
            process.send_signal(signal.SIGTERM)
        code = process.wait()
        with self._lock:
            self._running = None
        if code == Preempted.exit_code:
            log.info("the work was stopped after its checkpoint and goes on later")
        elif code != 0:
            log.warning("the process of the queue %s ended with code %d", self._queue, code)
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            self._give_back(owner, f"its process {how}")
        return code

    def drain_on_shutdown(self) -> None:
        """Make a shutdown of the worker stop the process; it saves a checkpoint and gives its work back."""
        worker_shutting_down.connect(self._drain, weak=False)

    def _drain(self, **_: Any) -> None:
        # This runs inside a signal handler of the main thread, so it must not wait for the lock.
        self._draining = True
        process = self._running
        if process is not None:
            process.send_signal(signal.SIGTERM)


def start_process(queue: str, environment: dict[str, str], owner: str) -> subprocess.Popen[bytes]:
    """Start `worker.process` in a process group of its own. It dies with the process that started it."""
    command = [sys.executable, "-m", "worker.process", "--queue", queue, "--owner", owner]
    return subprocess.Popen([*command, "--parent", str(os.getpid())], env=environment, start_new_session=True)
