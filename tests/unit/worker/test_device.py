"""One GPU for one process: real processes and real locks, on devices that are names here and no more."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.settings import VISIBLE_DEVICES, read_visible_devices
from tests.support import settings_in
from worker import device
from worker.device import FOLDER, list_devices, lock_device, take_device

PROGRAM = """
import sys, time
from pathlib import Path
from worker.device import lock_device
found = lock_device(Path(sys.argv[1]), sys.argv[2:])
print(found.name if found else "none", flush=True)
sys.stdin.read()
"""

Holder = subprocess.Popen[str]
Start = Callable[..., tuple[Holder, str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process that locks one of these devices and holds it; return it and what it got."""
    running: list[Holder] = []

    def run(*names: str) -> tuple[Holder, str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, tmp_path / FOLDER, *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield run
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA sees is put back after the test."""
    monkeypatch.setenv(VISIBLE_DEVICES, "GPU-a,GPU-b")


def test_each_process_gets_the_first_free_device_and_then_none(start: Start, tmp_path: Path) -> None:
    first, got_first = start("GPU-a", "GPU-b")
    _, got_second = start("GPU-a", "GPU-b")
    assert (got_first, got_second) == ("GPU-a", "GPU-b")
    assert lock_device(tmp_path / FOLDER, ["GPU-a", "GPU-b"]) is None
    assert (tmp_path / FOLDER / "GPU-a.lock").read_text() == f"{first.pid}\n"
    assert (tmp_path / FOLDER).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_device_is_free_again_however_its_process_ended(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    process, got = start("GPU-a")
    assert got == "GPU-a"
    process.send_signal(number)
    process.wait()
    found = lock_device(tmp_path / FOLDER, ["GPU-a"])
    assert found is not None
    found.file.close()


def test_a_stopped_process_keeps_its_device(start: Start, tmp_path: Path) -> None:
    process, _ = start("GPU-a")
    process.send_signal(signal.SIGSTOP)
    assert lock_device(tmp_path / FOLDER, ["GPU-a"]) is None


def test_a_child_of_the_holder_does_not_keep_the_device(tmp_path: Path) -> None:
    found = lock_device(tmp_path / FOLDER, ["GPU-a"])
    assert found is not None
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        found.file.close()
        again = lock_device(tmp_path / FOLDER, ["GPU-a"])
        child.kill()
    assert again is not None
    again.file.close()


def test_work_of_the_gpu_queue_sees_its_own_device_alone(visible: None, tmp_path: Path, start: Start) -> None:
    assert start("GPU-a")[1] == "GPU-a"
    assert take_device(settings_in(tmp_path), "gpu")
    assert os.environ[VISIBLE_DEVICES] == "GPU-b"
    taken = device._taken
    assert taken is not None
    os.environ[VISIBLE_DEVICES] = "GPU-a,GPU-b"
    assert not take_device(settings_in(tmp_path), "gpu")
    taken.file.close()


def test_who_waits_gets_the_device_when_it_is_free(
    visible: None, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.environ[VISIBLE_DEVICES] = "GPU-a"
    process, _ = start("GPU-a")
    looks = []

    def pause(_: float) -> None:
        looks.append(1)
        process.kill()
        process.wait()

    monkeypatch.setattr("worker.device.time.sleep", pause)
    assert take_device(settings_in(tmp_path), "gpu", wait=True)
    assert looks == [1]
    assert device._taken is not None
    device._taken.file.close()


def test_work_of_the_cpu_queue_sees_none_and_locks_none(visible: None, tmp_path: Path) -> None:
    assert take_device(settings_in(tmp_path), "cpu")
    assert os.environ[VISIBLE_DEVICES] == ""
    assert not (tmp_path / FOLDER).exists()


def test_without_a_gpu_nothing_is_locked(visible: None, tmp_path: Path) -> None:
    os.environ[VISIBLE_DEVICES] = ""
    assert take_device(settings_in(tmp_path), "gpu")
    assert take_device(settings_in(tmp_path), "gpu")
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, None),
        ("", []),
        ("-1", []),
        ("0", ["0"]),
        ("1, 0", ["1", "0"]),
        ("0,-1,1", ["0"]),
        ("GPU-8a2b,MIG-1/0", ["GPU-8a2b", "MIG-1/0"]),
    ],
)
def test_what_the_operator_made_visible_counts(
    monkeypatch: pytest.MonkeyPatch, text: str | None, names: list[str] | None
) -> None:
    monkeypatch.delenv(VISIBLE_DEVICES, raising=False)
    if text is not None:
        monkeypatch.setenv(VISIBLE_DEVICES, text)
    assert read_visible_devices() == names


def test_devices_are_found_by_the_driver_or_by_their_nodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(VISIBLE_DEVICES, raising=False)
    driver, nodes = tmp_path / "gpus", tmp_path / "dev"
    nodes.mkdir()
    assert list_devices(driver, nodes) == []
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (nodes / name).touch()
    assert list_devices(driver, nodes) == ["0", "1"]
    for place, uuid in enumerate(("GPU-0a-1", "GPU-0b-2")):
        folder = driver / f"0000:0{place}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t A GPU\nIRQ:   \t\t 42\nGPU UUID: \t {uuid}\n")
    assert list_devices(driver, nodes) == ["GPU-0a-1", "GPU-0b-2"]
