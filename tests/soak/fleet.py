"""The processes of a deployed installation, kept alive as an orchestrator does, and the faults that hit them."""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg
from redis import Redis as RedisClient

from app.failpoints import PLACES
from tests.faults.installation import Installation, kill_session
from tests.faults.servers import PostgreSQL, Redis
from tests.soak.schedule import Fault
from tests.soak.watch import Sample, look
from tests.support import free_port

SPARED = ("api-1", "reconciler-1", "worker-1")
"""Parts that are never killed, so that they live long enough to show whether they leak."""
LEASE_S = 6.0
RESTART_PAUSE_S = 1.0
LOOK_EVERY_S = 5.0
DISK_PLACES = {
    "fill the disk at a checkpoint": "checkpoint.after_file",
    "fill the disk at an upload": "storage.before_write",
}


class Fleet:
    """Two APIs, two reconcilers, a notary, two workers that train and one that does the rest."""

    def __init__(self, installation: Installation, database: PostgreSQL, broker: Redis) -> None:
        self.installation = installation
        self.ports = {f"api-{number}": free_port() for number in (1, 2)}
        self.samples: dict[str, list[Sample]] = {}
        """Looks at each process, by its part and id."""
        self._database, self._broker = database, broker
        self._commands: dict[str, Sequence[str]] = {
            **{part: ("api", "--port", str(port)) for part, port in self.ports.items()},
            "reconciler-1": ("reconciler",),
            "reconciler-2": ("reconciler",),
            "notary": ("notary",),
            "worker-1": ("worker", "--queue", "gpu"),
            "worker-2": ("worker", "--queue", "gpu"),
            "worker-cpu": ("worker", "--queue", "cpu"),
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._stop = threading.Event()
        self._started_at = time.monotonic()
        self._lock = threading.Lock()
        # Where the mark of a failpoint lies it does nothing; a full disk is one mark that is taken away.
        self._marks = installation.home / "marks"
        self._marks.mkdir()
        self._filled: set[str] = set()
        for place in DISK_PLACES.values():
            assert place in PLACES
            (self._marks / place).touch()
        self._failpoints = ",".join(
            [f"once={self._marks}", *(f"{place}=ENOSPC@*" for place in DISK_PLACES.values())]
        )
        self._threads = [threading.Thread(target=self._supervise), threading.Thread(target=self._watch)]

    def start(self) -> None:
        """Start every part, and keep them alive from now on."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[str]:
        """Ask every part to end, and return those that did not, and what they left."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        left = []
        for part, process in self._running.items():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                left.append(f"{part} did not end")
                kill_session(process)
        left += [f"process {pid}: {_command_of(pid)}" for pid in self.installation.processes()]
        return left

    def inject(self, fault: Fault) -> bool:
        """Do what a fault says; say whether that struck anything. A full disk strikes later: `take_strikes` has it then."""
        return self._injections()[fault.kind](random.Random(fault.draw))  # noqa: S311  (It is to come again.)

    def take_strikes(self) -> list[str]:
        """Return the kinds of full disks that a process came to since they were injected, each once."""
        struck = [kind for kind in self._filled if (self._marks / DISK_PLACES[kind]).exists()]
        self._filled.difference_update(struck)
        return struck

    def _injections(self) -> dict[str, Callable[[random.Random], bool]]:
        return {
            "kill a trainer": lambda draw: self._signal_trainer(draw, signal.SIGKILL),
            "stop a trainer": lambda draw: self._signal_trainer(
                draw, signal.SIGSTOP, goes_on=draw.random() < 0.5
            ),
            "kill a worker": lambda draw: self._signal(draw, "worker", signal.SIGKILL),
            "drain a worker": lambda draw: self._signal(draw, "worker", signal.SIGTERM),
            "kill an API": lambda draw: self._signal(draw, "api", signal.SIGKILL),
            "kill a reconciler": lambda draw: self._signal(draw, "reconciler", signal.SIGKILL),
            "stop a reconciler": lambda draw: self._signal(draw, "reconciler", signal.SIGSTOP),
            "kill the notary": lambda draw: self._signal(draw, "notary", signal.SIGKILL),
            "empty Redis": lambda _: self._with_redis(self._broker.flush),
            "restart Redis": lambda _: self._with_redis(self._broker.restart),
            "crash PostgreSQL": lambda _: self._crash_database(),
            "cut every connection": lambda _: self._cut(),
            "fill the disk at a checkpoint": lambda _: self._fill_disk("fill the disk at a checkpoint"),
            "fill the disk at an upload": lambda _: self._fill_disk("fill the disk at an upload"),
        }

    def _signal(self, draw: random.Random, kind: str, number: int) -> bool:
        with self._lock:
            parts = [part for part in self._running if part.startswith(kind) and part not in SPARED]
            if not parts:
                return False
            part = draw.choice(sorted(parts))
            process = self._running[part]
        _send(process.pid, number)
        return True

    def _signal_trainer(self, draw: random.Random, number: int, *, goes_on: bool = True) -> bool:
        trainers = sorted(self.installation.processes("worker.process"))
        if not trainers:
            return False
        _send(draw.choice(trainers), number, goes_on=goes_on)
        return True

    def _with_redis(self, do: Callable[[], None]) -> bool:
        do()
        return True

    def _crash_database(self) -> bool:
        self._database.restart("immediate")
        return True

    def _cut(self) -> bool:
        with psycopg.connect(self._database.url(), autocommit=True) as administrator:
            administrator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                (self.installation.database_name,),
            )
        with RedisClient(port=self._broker.port) as client:
            client.client_kill_filter(_type="normal", skipme=True)
            client.client_kill_filter(_type="pubsub")
        return True

    def _fill_disk(self, kind: str) -> bool:
        self._filled.add(kind)
        (self._marks / DISK_PLACES[kind]).unlink(missing_ok=True)
        return False

    def _supervise(self) -> None:
        while True:
            for part, command in self._commands.items():
                process = self._running.get(part)
                if process is None or process.poll() is not None:
                    armed = self._failpoints if part.startswith("worker") else ""
                    started = self.installation.start_part(*command, failpoints=armed)
                    with self._lock:
                        self._running[part] = started
                        if process is not None:
                            self.installation.parts.remove(process)
            if self._stop.wait(RESTART_PAUSE_S):
                return

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            with self._lock:
                running = {part: process.pid for part, process in self._running.items()}
            for part, pid in running.items():
                sample = look(pid, time.monotonic() - self._started_at)
                if sample is not None:
                    self.samples.setdefault(f"{part} ({pid})", []).append(sample)


def _send(pid: int, number: int, *, goes_on: bool = True) -> None:
    """Send a signal. What is stopped goes on after longer than a lease, or never, so that its worker has to kill it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    if number == signal.SIGSTOP and goes_on:
        timer = threading.Timer(1.5 * LEASE_S, _send, (pid, signal.SIGCONT))
        timer.daemon = True
        timer.start()


def _command_of(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return "gone meanwhile"
