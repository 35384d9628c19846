"""What a knock makes a worker do."""

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from tests.support import settings_in
from worker import tasks
from worker.tasks import Processes


class Ended:
    """A process that has ended."""

    pid = 2**22 + 1
    """One more than there can be."""

    def __init__(self, code: int) -> None:
        self.code = code

    def wait(self, timeout: float) -> int:
        return self.code


def keep(owner: str, reason: str, *, out_of_memory: bool) -> None:
    """Give nothing back: in these tests nobody has claimed anything."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queues for which processes were started; each ends well."""
    queues: list[str] = []

    def start(queue: str, *_: Any) -> Ended:
        queues.append(queue)
        return Ended(0)

    monkeypatch.setattr(tasks, "start_process", start)
    return queues


class TestWake:
    def test_knock_for_nothing_starts_nothing(self, tmp_path: Path, started: list[str]) -> None:
        Processes(settings_in(tmp_path), "gpu", lambda: False, keep, lambda _: True).wake("ftjob-forged")
        assert started == []

    def test_worker_goes_on_while_there_is_work(self, tmp_path: Path, started: list[str]) -> None:
        Processes(settings_in(tmp_path), "gpu", lambda: len(started) < 3, keep, lambda _: True).wake(
            "ftjob-1"
        )
        assert started == ["gpu"] * 3

    def test_failure_ends_it_until_the_next_knock(
        self, tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        good = tasks.start_process

        def start(*arguments: Any) -> Any:
            good(*arguments)
            return Ended(1)

        monkeypatch.setattr(tasks, "start_process", start)
        processes = Processes(settings_in(tmp_path), "gpu", lambda: True, keep, lambda _: True)
        processes.wake("ftjob-1")
        assert started == ["gpu"]
        processes.wake("ftjob-1")
        assert started == ["gpu"] * 2

    def test_worker_that_is_stopping_starts_nothing(self, tmp_path: Path, started: list[str]) -> None:
        processes = Processes(settings_in(tmp_path), "gpu", lambda: True, keep, lambda _: True)
        processes.drain()
        processes.wake("ftjob-1")
        assert started == []


class TestDeath:
    """What a worker says of a process that has died."""

    @pytest.fixture
    def told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """Return how a process that ends so, while the kernel counts so, is told of."""

        def tell(code: int, counts: list[int | None]) -> tuple[str, bool]:
            told: list[tuple[str, bool]] = []
            given = iter(counts)
            monkeypatch.setattr(tasks, "start_process", lambda *_: Ended(code))
            monkeypatch.setattr(tasks, "count_oom_kills", lambda: next(given))

            def give_back(owner: str, reason: str, *, out_of_memory: bool) -> None:
                told.append((reason, out_of_memory))

            settings = settings_in(tmp_path)
            Processes(settings, "gpu", lambda: not told, give_back, lambda _: True).wake("ftjob-1")
            return told[0]

        yield tell

    @pytest.mark.parametrize(
        ("counts", "lacked_memory"), [([3, 4], True), ([3, 3], False), ([None, None], False)]
    )
    def test_who_was_killed_lacked_memory_where_the_kernel_says_so(
        self, told: Any, counts: list[int | None], lacked_memory: bool
    ) -> None:
        assert told(-signal.SIGKILL, counts) == ("its process was killed by signal 9", lacked_memory)

    def test_who_crashed_did_not_lack_memory_though_another_process_did(self, told: Any) -> None:
        assert told(-signal.SIGSEGV, [3, 4]) == ("its process was killed by signal 11", False)

    def test_who_hung_is_said_to_have(self, told: Any) -> None:
        assert told(70, [0, 0]) == ("its process hung: its work got nowhere for 1800 s", False)


class TestStandstill:
    """A real process that never takes any work and never ends by itself."""

    @pytest.fixture
    def processes(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list["subprocess.Popen[bytes]"]]:
        """Those that were started; none outlives its test."""
        running: list[subprocess.Popen[bytes]] = []

        def start(*_: Any) -> "subprocess.Popen[bytes]":
            command = [sys.executable, "-c", "import time; time.sleep(600)"]
            running.append(subprocess.Popen(command, start_new_session=True))
            return running[-1]

        monkeypatch.setattr(tasks, "start_process", start)
        yield running
        for each in running:
            each.kill()
            each.wait()

    def wake(self, folder: Path, given_back: list[str], owns: Callable[[str], bool]) -> Processes:
        """Run one process to its end, which the worker has to bring about."""
        settings = settings_in(folder, heartbeat_s=0.05, lease_s=0.2, stall_s=0.5)

        def give_back(owner: str, reason: str, *, out_of_memory: bool) -> None:
            given_back.append(reason)
            raise RuntimeError("nobody foresaw this")

        worker = Processes(settings, "gpu", lambda: not given_back, give_back, owns)
        waking = threading.Thread(target=worker.wake, args=("ftjob-1",), daemon=True)
        waking.start()
        waking.join(60)
        assert not waking.is_alive()
        return worker

    def test_who_never_owned_anything_is_killed(
        self, tmp_path: Path, processes: list[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        given_back: list[str] = []
        worker = self.wake(tmp_path, given_back, lambda _: False)
        assert given_back == ["its process was killed by signal 9"]
        assert "has taken no work and does not end; killing it" in caplog.text
        assert (len(processes), worker._running, worker._busy.locked()) == (1, None, False)

    def test_no_error_lets_a_second_process_start_beside_it(
        self,
        tmp_path: Path,
        processes: list[Any],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        asked: list[str] = []
        given_back: list[str] = []

        def owns(owner: str) -> bool:
            asked.append(owner)
            if len(asked) < 4:
                raise RuntimeError("nobody foresaw that")
            return False

        def end(pid: int, owner: str) -> int:
            raise OSError("nor that")

        monkeypatch.setattr(tasks, "end_remains", end)
        with caplog.at_level(logging.ERROR):
            worker = self.wake(tmp_path, given_back, owns)
        assert given_back == ["its process was killed by signal 9"]
        assert len(processes) == 1
        assert processes[0].poll() == -signal.SIGKILL
        assert (worker._running, worker._busy.locked()) == (None, False)
        for said in ("nobody foresaw that", "nor that", "nobody foresaw this"):
            assert said in caplog.text


class TestLook:
    def test_work_is_found_without_a_knock_and_in_spite_of_a_database_that_was_away(
        self, tmp_path: Path, started: list[str]
    ) -> None:
        stop = threading.Event()
        asked: list[bool] = []

        def has_work() -> bool:
            asked.append(True)
            if len(asked) == 1:
                raise OperationalError("SELECT 1", None, Exception("the database is away"))
            if len(asked) == 2:
                raise RuntimeError("something else")
            if started:
                stop.set()
            return not started

        settings = settings_in(tmp_path, requeue_after_s=0.01)
        Processes(settings, "gpu", has_work, keep, lambda _: True).look_for_work(stop)
        assert started == ["gpu"]

    def test_nothing_is_started_beside_what_runs(self, tmp_path: Path, started: list[str]) -> None:
        settings = settings_in(tmp_path, requeue_after_s=0.01)
        processes = Processes(settings, "gpu", lambda: True, keep, lambda _: True)
        stop = threading.Event()
        with processes._busy:
            looking = threading.Thread(target=processes.look_for_work, args=(stop,))
            looking.start()
            looking.join(0.3)
            stop.set()
            looking.join()
        assert started == []
