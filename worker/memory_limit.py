"""Bounding the memory of a process that works, so that the machine's other processes do not die of it.

Best is a control group of its own: then the kernel counts what is really used, and kills the whole group at once. It
needs a group that was given to us, which systemd does by `Delegate=memory` and `DelegateSubgroup=`; docs/deploy.md has
the unit. Elsewhere a limit on the data of the process serves, but not with a GPU: CUDA reserves far more addresses than
it ever uses, and a limit on addresses would only keep it from starting.
"""

import fcntl
import logging
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
DELEGATED = "user.delegate"
"""The mark that systemd puts on a control group that it gives away."""
PREFIX = "tether-"
REMOVAL_TRIES = 50
REMOVAL_PAUSE_S = 0.1


def limit_memory(
    limit_bytes: int, name: str, *, on_gpu: bool, membership: Path = MEMBERSHIP, root: Path = ROOT
) -> str | None:
    """Bound the memory of this process and all that it starts; return by what: `cgroup`, `rlimit`, or None.

    0 is no limit. `name` is unique among the processes of this machine; `remove_group` takes it again.
    """
    if limit_bytes == 0:
        return None
    if _join_group(limit_bytes, name, membership, root):
        return "cgroup"
    if sys.platform == "linux" and not on_gpu:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
        log.info("no control group is ours to limit memory by; the limit is on the data of this process")
        return "rlimit"
    log.warning(
        "TETHER_TRAINER_MEMORY_BYTES has no effect: no control group is ours to limit memory by, and with a GPU nothing else"
        " can. Give the service one (Delegate=memory, DelegateSubgroup=), or limit its container"
    )
    return None


def remove_group(name: str, *, membership: Path = MEMBERSHIP, root: Path = ROOT) -> int:
    """End whatever is left in the group of a process that has died, and remove it.

    Returns how many processes of it the kernel killed for want of memory; 0 where there was no such group.
    """
    parent = _find_parent(membership, root)
    group = parent / _folder_of(name) if parent else None
    if group is None or not group.is_dir():
        return 0
    killed = _read_oom_kills(group)
    with suppress(OSError):
        (group / "cgroup.kill").write_text("1")
    for _ in range(REMOVAL_TRIES):
        try:
            group.rmdir()
        except OSError:
            # The last process is still on its way out.
            time.sleep(REMOVAL_PAUSE_S)
        else:
            return killed
    log.warning("the control group %s cannot be removed", group)
    return killed


def remove_empty_groups(*, membership: Path = MEMBERSHIP, root: Path = ROOT) -> None:
    """Remove the groups that no process is in: their worker died before it could."""
    parent = _find_parent(membership, root)
    if parent is None:
        return
    # Where another worker's process is about to join a new group, a later start finds what is left.
    with suppress(OSError), _locked(parent, fcntl.LOCK_EX | fcntl.LOCK_NB):
        for group in parent.glob(f"{PREFIX}*"):
            # The kernel keeps a group with processes.
            with suppress(OSError):
                group.rmdir()


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Hold a lock on a folder. Raises OSError where it cannot be had."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _join_group(limit_bytes: int, name: str, membership: Path, root: Path) -> bool:
    parent = _find_parent(membership, root)
    if parent is None:
        return False
    group = parent / _folder_of(name)
    try:
        with _locked(parent, fcntl.LOCK_SH):
            (parent / "cgroup.subtree_control").write_text("+memory")
            group.mkdir()
            (group / "memory.max").write_text(str(limit_bytes))
            (group / "memory.oom.group").write_text("1")
            with suppress(FileNotFoundError):
                # It is not there where the kernel does not count swap.
                (group / "memory.swap.max").write_text("0")
            (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        log.warning("the control group %s cannot be used (%s)", group, error.strerror)
        with suppress(OSError):
            group.rmdir()
        return False
    return True


def _find_parent(membership: Path, root: Path) -> Path | None:
    """Return the group that was given to us and in which we are not ourselves: a group with processes has no limits below.

    Only a group with the mark is taken. Being root is no leave to change the groups of others.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if own is None or ".." in Path(own).parts:
        return None
    parent = (root / own.lstrip("/")).parent
    try:
        return parent if os.getxattr(parent, DELEGATED) == b"1" else None
    except (OSError, AttributeError):
        return None


def _folder_of(name: str) -> str:
    return PREFIX + re.sub(r"[^A-Za-z0-9_-]", "-", name)


def _read_oom_kills(group: Path) -> int:
    try:
        fields = dict(line.split() for line in (group / "memory.events").read_text("utf-8").splitlines())
        return int(fields["oom_kill"])
    except (OSError, KeyError, ValueError):
        return 0
