"""Processes, threads and clocks that a test moves by hand, so that what races in life comes in the order that it chooses.

The code that runs in them is the product's own, and so is the database. What stands in for something is what the system
would give: time, threads, events, signals, the end of a process. A thread here is a real one that waits for its turn; one
at a time has it, and it is given back before each transaction begins and wherever the code waits. Nothing else can come
between, because on SQLite a transaction that writes has the database to itself.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import Engine, event

UNIX_EPOCH_AS_JULIAN_DAY = 2440587.5
MS_A_DAY = 86_400_000
STARTED_AT_MS = 1_800_000_000_000
"""What the database's clock says at the beginning."""
SIGKILLED = -9


class Killed(BaseException):
    """Ends a thread where it stands, as a killed process ends; nothing in the product catches it."""


class Exited(BaseException):
    """Ends the whole process, as `os._exit` does."""


class Thread:
    """A thread that runs only while somebody steps it."""

    def __init__(self, machine: "Machine", target: Callable[[], object], process: "Process | None") -> None:
        self.process = process
        self.done = False
        self.error: BaseException | None = None
        self.result: object = None
        self.wakes_at: float | None = None
        """When it goes on, where it sleeps."""
        self._machine = machine
        self._target = target
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._killed = False
        self._real = threading.Thread(target=self._run, daemon=True)
        self._started = False

    def step(self) -> None:
        """Let it run up to the next place where it gives its turn back."""
        if self.done:
            return
        before, self._machine.running = self._machine.running, self
        if not self._started:
            self._started = True
            self._real.start()
        else:
            self._go.release()
        self._back.acquire()
        self._machine.running = before
        if self.done and not isinstance(self.error, Killed | Exited | None):
            raise self.error

    def kill(self) -> None:
        """End it where it stands."""
        self._killed = True
        if not self._started:
            self.done = True
        while not self.done:
            self.step()

    def give_turn_back(self) -> None:
        """Wait for the next turn; called by the thread itself."""
        self._back.release()
        self._go.acquire()
        if self._killed:
            raise Killed

    def _run(self) -> None:
        try:
            self.result = self._target()
        except BaseException as error:  # It is raised where it is stepped.
            self.error = error
        self.done = True
        self._back.release()


class Process:
    """A process of one main thread and those that it starts."""

    def __init__(self, machine: "Machine", name: str, main: Callable[[], int]) -> None:
        self.name = name
        self.machine = machine
        self.code: int | None = None
        """How it ended; None while it lives."""
        self.is_stopped = False
        """Whether it was sent SIGSTOP and not yet SIGCONT."""
        self.threads = [Thread(machine, main, self)]
        self.handlers: dict[int, Callable[..., object]] = {}

    def step(self) -> None:
        """Let the main thread run up to its next transaction."""
        if self.code is not None or self.is_stopped:
            return
        main = self.threads[0]
        main.step()
        self._bury(main)

    def run_others(self) -> None:
        """Let each other thread run that slept long enough, until it sleeps again."""
        for thread in self.threads[1:]:
            while (
                self.code is None
                and not self.is_stopped
                and not thread.done
                and thread.wakes_at is not None
                and thread.wakes_at <= self.machine.now_s
            ):
                thread.wakes_at = None
                while not thread.done and thread.wakes_at is None:
                    thread.step()
                    self._bury(thread)

    def end(self, code: int) -> None:
        """End it at once: none of its threads runs any more."""
        self.code = code
        for thread in self.threads:
            thread.kill()

    def signal(self, number: int) -> None:
        """Have its handler of a signal run."""
        if self.code is None and number in self.handlers:
            self.handlers[number](number, None)

    def _bury(self, thread: Thread) -> None:
        if self.code is not None or not thread.done:
            return
        if isinstance(thread.error, Exited):
            self.end(thread.error.args[0])
        elif thread is self.threads[0]:
            assert isinstance(thread.result, int)
            self.end(thread.result)


class Machine:
    """The clocks, and whose turn it is."""

    def __init__(self) -> None:
        self.running: Thread | None = None
        self.begin_again()

    def begin_again(self) -> None:
        """Forget everything that was before."""
        self.now_s = 1000.0
        """The monotonic clock of every process."""
        self.database_offset_s = 0.0
        """How far the database's clock has jumped."""
        self.processes: list[Process] = []

    def start(self, name: str, main: Callable[[], int]) -> Process:
        """Make a process; it runs when it is stepped."""
        process = Process(self, name, main)
        self.processes.append(process)
        return process

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and let whoever sleeps wake up in between, in order."""
        until = self.now_s + seconds
        while True:
            due = [
                thread.wakes_at
                for process in self.processes
                if process.code is None and not process.is_stopped
                for thread in process.threads
                if not thread.done and thread.wakes_at is not None and thread.wakes_at <= until
            ]
            if not due:
                break
            self.now_s = max(self.now_s, min(due))
            for process in list(self.processes):
                process.run_others()
        self.now_s = until

    def attach(self, engine: Engine) -> None:
        """Have the turn given back before each transaction, and SQLite's clock be this machine's."""
        event.listen(engine, "connect", self._set_clock)
        event.listen(engine, "checkout", self._give_turn_back)

    def _set_clock(self, connection: sqlite3.Connection, _record: object) -> None:
        def julian_day(_: str) -> float:
            ms = STARTED_AT_MS + (self.now_s + self.database_offset_s) * 1000
            return UNIX_EPOCH_AS_JULIAN_DAY + ms / MS_A_DAY

        connection.create_function("julianday", 1, julian_day)

    def _give_turn_back(self, *_: object) -> None:
        # Each transaction takes a connection of its own from the pool.
        if self.running is not None:
            self.running.give_turn_back()

    def current_process(self) -> Process:
        """Return the process whose thread runs."""
        assert self.running is not None
        assert self.running.process is not None
        return self.running.process


class _StandIn:
    """A module with some of its names replaced."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        self._module = module
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Event:
    """`threading.Event` under the machine's clock."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._is_set = False
        self._waiting: list[Thread] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for thread in self._waiting:
            thread.wakes_at = self._machine.now_s

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        thread = self._machine.running
        assert thread is not None
        if not self._is_set:
            thread.wakes_at = float("inf") if timeout is None else self._machine.now_s + timeout
            self._waiting.append(thread)
            try:
                thread.give_turn_back()
            finally:
                self._waiting.remove(thread)
                thread.wakes_at = None
        return self._is_set


class _Threads:
    """`threading.Thread` in the machine: a thread of the process that makes it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __call__(
        self,
        *,
        target: Callable[..., object],
        args: tuple[Any, ...] = (),
        **_: object,
    ) -> "_Threads._Handle":
        return self._Handle(self._machine, partial(target, *args))

    class _Handle:
        def __init__(self, machine: Machine, target: Callable[[], object]) -> None:
            self._process = machine.current_process()
            self._thread = Thread(machine, target, self._process)

        def start(self) -> None:
            self._process.threads.append(self._thread)
            self._thread.step()

        def is_alive(self) -> bool:
            return not self._thread.done

        def join(self, _timeout: float | None = None) -> None:
            self._thread.wakes_at = None
            while not self._thread.done:
                self._thread.step()


def stand_ins(machine: Machine) -> dict[str, Any]:
    """Return what replaces the modules `time`, `threading`, `os` and `signal` in code that runs in processes."""

    def leave(code: int) -> None:
        raise Exited(code)

    def handle(number: int, handler: Callable[..., object]) -> None:
        machine.current_process().handlers[number] = handler

    import os
    import signal

    return {
        "time": _StandIn(time, monotonic=lambda: machine.now_s),
        "threading": _StandIn(threading, Event=lambda: _Event(machine), Thread=_Threads(machine)),
        "os": _StandIn(os, _exit=leave),
        "signal": _StandIn(signal, signal=handle),
    }
