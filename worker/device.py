"""One GPU for one process that works, by a lock that the kernel releases however the process ends."""

import fcntl
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from app.settings import Settings, read_visible_devices, show_devices

log = logging.getLogger(__name__)

NO_DEVICE = 76
"""Exit code of a process that found every GPU taken, and claimed nothing."""
FOLDER = "devices"
"""In the folder of local state, a file for each GPU."""
LOOK_AGAIN_S = 2.0
DRIVER = Path("/proc/driver/nvidia/gpus")
NODES = Path("/dev")


class Device(NamedTuple):
    """A GPU that is this process's own."""

    name: str
    file: TextIO
    """The lock lasts as long as it is open. Children do not inherit it."""


_taken: Device | None = None


def take_device(settings: Settings, queue: str, *, wait: bool = False) -> bool:
    """Show this process the one GPU that it may use, before anything has looked for one; False where all are taken.

    The queue cpu gets none. A machine without a GPU needs no lock. With `wait`, one that is taken is waited for.
    """
    global _taken  # noqa: PLW0603  (The lock is the process's own, and is given back with it.)
    names = list_devices()
    if queue != "gpu":
        show_devices([])
        return True
    if not names:
        return True
    told = False
    while True:
        _taken = lock_device(settings.home / FOLDER, names)
        if _taken is not None:
            show_devices([_taken.name])
            log.info("working on the GPU %s", _taken.name)
            return True
        if not wait:
            return False
        if not told:
            log.warning("every GPU of this machine is taken by another process; waiting for one")
            told = True
        time.sleep(LOOK_AGAIN_S)


def lock_device(folder: Path, names: Sequence[str]) -> Device | None:
    """Lock the first of these devices that no other process has; None where all are taken."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in names:
        file = (folder / f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        # For people: who has it.
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return Device(name, file)
    return None


def list_devices(driver: Path = DRIVER, nodes: Path = NODES) -> list[str]:
    """Return the GPUs that this process may use, as CUDA names them: those of CUDA_VISIBLE_DEVICES, else all there are."""
    named = read_visible_devices()
    if named is not None:
        return named
    found = []
    for file in sorted(driver.glob("*/information")):
        uuid = re.search(r"^GPU UUID:\s*(GPU-[0-9a-f-]+)\s*$", file.read_text(encoding="ascii"), re.MULTILINE)
        if uuid:
            found.append(uuid.group(1))
    # Some containers have the devices and not the driver's table.
    numbers = sorted(int(node.name.removeprefix("nvidia")) for node in nodes.glob("nvidia[0-9]*"))
    return found or [str(place) for place in range(len(numbers))]
