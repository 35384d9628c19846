"""Places at which a test makes a process fail. They are off unless TETHER_TEST_FAILPOINTS arms some of them.

`name=action` or `name=action@n`, with commas between several: the n-th time that a process comes to that place, by default
the first, or every time with `@*`. With `once=folder` each strikes one process alone: it leaves a file of its name there,
and where that file lies already nothing happens, so that whoever does the work again comes through.

| action | what happens there |
|---|---|
| `kill`, `segfault`, `stop` | the process gets SIGKILL, SIGSEGV or SIGSTOP |
| `exit` | it ends with code 1, without any clean-up |
| `hang` | the thread stands still for ever |
| `sleep:s` | it waits for `s` seconds |
| `ENOSPC`, `EIO` | the file system reports this error |
| `memory` | there is no memory left |

A place that is off costs a call and one look at a variable, some 30 ns, at most a dozen times a step.
"""

import errno
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from app.errors import ConfigurationError

VARIABLE = "TETHER_TEST_FAILPOINTS"
PLACES: Mapping[str, str] = {
    "claim.before_commit": "a worker has chosen work and is about to own it",
    "claim.after_commit": "it owns the work and has not begun",
    "begin.before_commit": "the start or the resume is about to be recorded",
    "begin.after_commit": "it is recorded",
    "reference.before_commit": "the risk of every row is about to be recorded",
    "reference.after_commit": "it is recorded",
    "step.before_commit": "a step is done and about to be recorded",
    "step.after_commit": "it is recorded",
    "checkpoint.before_write": "a checkpoint is about to be written",
    "checkpoint.after_file": "one of a checkpoint's files is written and synchronised",
    "checkpoint.before_folder_sync": "all of them are, and the temporary folder is about to be",
    "checkpoint.before_rename": "the temporary folder is about to get its name",
    "checkpoint.after_rename": "it has its name, which is not on the disk for certain",
    "checkpoint.before_commit": "a checkpoint on the disk is about to be recorded",
    "checkpoint.after_commit": "it is recorded; what it replaces is still there",
    "pause.before_commit": "the job is about to be pausing",
    "pause.after_commit": "it is pausing; its checkpoint is not written",
    "finalise.before_commit": "the last step is recorded, and the job about to be finalising",
    "finalise.after_commit": "it is finalising; its adapter is not stored",
    "storage.before_write": "bytes are about to be stored",
    "storage.before_rename": "they are stored aside and about to get their address in the folder",
    "storage.after_write": "they are stored; no row names them",
    "publish.before_commit": "the last leaves are about to be recorded and the job's state moved to signing",
    "publish.after_commit": "they are; the process has not cleaned up",
    "end.before_commit": "work is about to end as failed or cancelled",
    "release.before_commit": "its owner is about to give work back",
    "conclude.before_commit": "a job whose record is signed is about to have succeeded",
    "repair.before_commit": "the reconciler is about to take work from an owner that fell silent, or to announce it",
    "notary.before_file": "new leaves of the log are committed; the notary's file does not know of them",
    "notary.after_file": "the notary's file is written; its signature is not in the database",
    "webhook.before_send": "a delivery is claimed and about to be sent",
    "webhook.after_send": "it was sent; how that went is not noted",
}
"""Every place, and how things stand when a process comes to it."""
ONCE = "once"
_SIGNALS = {"kill": signal.SIGKILL, "segfault": signal.SIGSEGV, "stop": signal.SIGSTOP}
_ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
_ACTIONS = (*_SIGNALS, *_ERRORS, "exit", "hang", "memory")


@dataclass(slots=True)
class _Fault:
    action: str
    wait_s: float
    strike_at: int | None
    """Which arrival it strikes; None for every one."""
    arrivals: int = 0


_armed: dict[str, _Fault] = {}
_once: Path | None = None


def failpoint(name: str) -> None:
    """Do here what this place is armed with. Mostly that is nothing."""
    if _armed:
        _arrive(name)


def arm(specification: str) -> None:
    """Arm what a specification says, and nothing else. Raises ConfigurationError for one that cannot be meant."""
    global _once  # noqa: PLW0603  (What is armed belongs to the process, as its environment does.)
    faults, once = {}, None
    for part in filter(None, (each.strip() for each in specification.split(","))):
        name, _, what = part.partition("=")
        if name == ONCE:
            once = Path(what)
        elif name in PLACES:
            faults[name] = _parse(part, what)
        else:
            raise ConfigurationError(f"{VARIABLE}: {name!r} is no failpoint. There are: {', '.join(PLACES)}")
    _armed.clear()
    _armed.update(faults)
    _once = once


def list_armed() -> list[str]:
    """Return the places that are armed."""
    return sorted(_armed)


def _parse(part: str, what: str) -> _Fault:
    action, _, nth = what.partition("@")
    action, _, wait = action.partition(":")
    try:
        fault = _Fault(action, float(wait or 0), None if nth == "*" else int(nth or 1))
    except ValueError:
        fault = None
    if fault is None or (action not in _ACTIONS and not (action == "sleep" and wait)):
        raise ConfigurationError(
            f"{VARIABLE}: {part!r} is not name=action or name=action@n. Actions: {', '.join(_ACTIONS)}, sleep:seconds"
        )
    return fault


def _arrive(name: str) -> None:
    fault = _armed.get(name)
    if fault is None:
        return
    fault.arrivals += 1
    if fault.strike_at in (None, fault.arrivals) and _is_first(name):
        _strike(name, fault)


def _is_first(name: str) -> bool:
    """Say whether no process was struck here before, where that counts."""
    if _once is None:
        return True
    try:
        os.close(os.open(_once / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _strike(name: str, fault: _Fault) -> None:
    if fault.action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[fault.action])
        # A signal that was sent to oneself may arrive a moment later; nothing is to happen before.
        time.sleep(1 if fault.action == "stop" else 3600)
    elif fault.action in _ERRORS:
        number = _ERRORS[fault.action]
        raise OSError(number, f"{os.strerror(number)} (failpoint {name})")
    elif fault.action == "exit":
        os._exit(1)
    elif fault.action == "memory":
        raise MemoryError(f"out of memory (failpoint {name})")
    elif fault.action == "hang":
        while True:
            time.sleep(3600)
    else:
        time.sleep(fault.wait_s)
