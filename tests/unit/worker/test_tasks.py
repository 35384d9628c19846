"""What a knock makes a worker do."""

from pathlib import Path
from typing import Any

import pytest

from tests.support import settings_in
from worker import tasks
from worker.tasks import Processes


class Ended:
    """A process that has ended."""

    def __init__(self, code: int) -> None:
        self.code = code

    def wait(self) -> int:
        return self.code


def keep(owner: str, reason: str) -> None:
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
        Processes(settings_in(tmp_path), "gpu", lambda: False, keep).wake("ftjob-forged")
        assert started == []

    def test_worker_goes_on_while_there_is_work(self, tmp_path: Path, started: list[str]) -> None:
        Processes(settings_in(tmp_path), "gpu", lambda: len(started) < 3, keep).wake("ftjob-1")
        assert started == ["gpu"] * 3

    def test_failure_ends_it_until_the_next_knock(
        self, tmp_path: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        good = tasks.start_process

        def start(*arguments: Any) -> Any:
            good(*arguments)
            return Ended(1)

        monkeypatch.setattr(tasks, "start_process", start)
        processes = Processes(settings_in(tmp_path), "gpu", lambda: True, keep)
        processes.wake("ftjob-1")
        assert started == ["gpu"]
        processes.wake("ftjob-1")
        assert started == ["gpu"] * 2

    def test_worker_that_is_stopping_starts_nothing(self, tmp_path: Path, started: list[str]) -> None:
        processes = Processes(settings_in(tmp_path), "gpu", lambda: True, keep)
        processes._drain()
        processes.wake("ftjob-1")
        assert started == []
