"""Memory and descriptors of processes over time, and whether they are flat."""

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression, median
from typing import NamedTuple

MIB = 1024 * 1024
WARM_UP_S = 60.0
MIN_WATCHED_S = 60.0
JUDGED_AFTER_S = WARM_UP_S + MIN_WATCHED_S
"""A process that lives for longer is judged."""
MAX_RISE_MIB = 16.0
MAX_RISE_SHARE = 0.1
MAX_MORE_DESCRIPTORS = 8


class Sample(NamedTuple):
    """One look at a process."""

    at_s: float
    rss_bytes: int
    descriptors: int


class Verdict(NamedTuple):
    """What so many looks say."""

    name: str
    seconds: float
    """For how long it was watched, its warm-up left out."""
    rss_mib: float
    """At the end of its warm-up."""
    rise_mib: float
    """By how much the straight line through the samples rises over the time that it was watched."""
    descriptors: tuple[int, int]
    """After its warm-up, and at the end."""
    is_flat: bool


def look(pid: int, at_s: float) -> Sample | None:
    """Return what a process uses now; None where it has ended."""
    folder = Path("/proc") / str(pid)
    try:
        pages = int((folder / "statm").read_text().split()[1])
        return Sample(at_s, pages * os.sysconf("SC_PAGE_SIZE"), len(list((folder / "fd").iterdir())))
    except (OSError, IndexError):
        return None


def judge(name: str, samples: Sequence[Sample]) -> Verdict | None:
    """Say whether a process is flat; None where it did not live long enough for an answer.

    After a minute of warm-up its memory may rise by no more than 16 MiB or a tenth, whichever is more, over all the time that it
    is watched, however long that is, and its descriptors by no more than 8.
    """
    warm = [sample for sample in samples if sample.at_s - samples[0].at_s >= WARM_UP_S]
    if len(warm) < 5 or warm[-1].at_s - warm[0].at_s < MIN_WATCHED_S:
        return None
    seconds = warm[-1].at_s - warm[0].at_s
    line = linear_regression([each.at_s for each in warm], [each.rss_bytes / MIB for each in warm])
    rss_mib, rise_mib = warm[0].rss_bytes / MIB, line.slope * seconds
    few = max(1, len(warm) // 5)
    descriptors = (
        round(median(each.descriptors for each in warm[:few])),
        round(median(each.descriptors for each in warm[-few:])),
    )
    is_flat = (
        rise_mib <= max(MAX_RISE_MIB, MAX_RISE_SHARE * rss_mib)
        and descriptors[1] - descriptors[0] <= MAX_MORE_DESCRIPTORS
    )
    return Verdict(name, seconds, rss_mib, rise_mib, descriptors, is_flat)
