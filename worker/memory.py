"""What the kernel says of memory that ran out: how many processes of this control group it has killed for it."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def count_oom_kills(membership: Path = MEMBERSHIP, root: Path = ROOT) -> int | None:
    """Return how many processes of this one's control group, or of those below it, were killed for want of memory.

    None where the system does not say: it is no Linux, or keeps the count from us.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for file in _candidates(lines, root):
        try:
            fields = dict(line.split(" ", 1) for line in file.read_text(encoding="utf-8").splitlines())
            return int(fields["oom_kill"])
        except (OSError, KeyError, ValueError):
            continue
    return None


def _candidates(lines: list[str], root: Path) -> Iterator[Path]:
    """Yield the files that may have the count: of version 2 of control groups, then of version 1."""
    for line in lines:
        hierarchy, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        # Within a container the group may be named as the host sees it, while its files lie at the root.
        for folder in (group.lstrip("/"), ""):
            if hierarchy == "0":
                yield root / folder / "memory.events"
            elif "memory" in controllers.split(","):
                yield root / "memory" / folder / "memory.oom_control"
