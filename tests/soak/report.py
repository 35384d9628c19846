"""What a soak found: the bars, and how it is written down."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.soak.watch import JUDGED_AFTER_S, Verdict


@dataclass
class Findings:
    """Everything that was counted."""

    seed: int
    minutes: float
    states: Counter[str] = field(default_factory=Counter)
    """Jobs by how they ended."""
    other_work: Counter[str] = field(default_factory=Counter)
    """Reports and evaluations, likewise."""
    faults: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    """Jobs that are gone, never ended, or ended as nobody asked for."""
    doubled: list[str] = field(default_factory=list)
    """Requests that made two jobs, and epochs or steps that came twice."""
    holes: list[str] = field(default_factory=list)
    """Records that do not verify."""
    unequal: list[str] = field(default_factory=list)
    """Groups of equal jobs that ended with different adapters."""
    compared: int = 0
    """Jobs whose adapter was compared with that of an equal one."""
    attempts: int = 0
    """Claims of all jobs."""
    recoveries_s: dict[str, list[float]] = field(default_factory=dict)
    """By kind of fault: how long it took from there to the next recorded step of any job."""
    processes: list[Verdict] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    """Processes that outlived the service."""
    commands: Counter[str] = field(default_factory=Counter)
    """What clients asked for, beside jobs."""

    def broken(self) -> list[str]:
        """Return the bars that do not hold."""
        bars = {
            "no job was tried": not self.states,
            "no fault was injected": not self.faults,
            f"{len(self.lost)} lost": self.lost,
            f"{len(self.doubled)} doubled": self.doubled,
            f"{len(self.holes)} holes": self.holes,
            f"{len(self.unequal)} groups of unequal adapters": self.unequal,
            "no two equal jobs succeeded, so that no adapter was compared": not self.compared,
            "processes left behind": self.left_behind,
            # Some are never killed, so that a run of two minutes has them, and starting and ending take longer still.
            "no process was watched long enough": self.minutes * 60 >= JUDGED_AFTER_S and not self.processes,
            "not flat: " + ", ".join(each.name for each in self.processes if not each.is_flat): not all(
                each.is_flat for each in self.processes
            ),
        }
        return [name for name, is_broken in bars.items() if is_broken]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON."""
        processes = [each._asdict() for each in self.processes]
        return {**vars(self), "processes": processes, "broken": self.broken()}


def format_report(found: Findings) -> str:
    """Return the report as Markdown."""
    broken = found.broken()
    times = [each for times in found.recoveries_s.values() for each in times]
    lines = [
        "# Soak",
        "",
        f"{found.minutes:g} minutes, seed {found.seed}: {found.states.total()} jobs, {found.faults.total()} faults."
        + (" Every bar holds." if not broken else f" **Broken: {'; '.join(broken)}.**"),
        "",
        "| | |",
        "|---|--:|",
        *(f"| jobs {state} | {count} |" for state, count in sorted(found.states.items())),
        *(f"| {kind} | {count} |" for kind, count in sorted(found.other_work.items())),
        *(f"| asked for: {kind} | {count} |" for kind, count in sorted(found.commands.items())),
        f"| claims of jobs | {found.attempts} |",
        f"| lost | {len(found.lost)} |",
        f"| doubled | {len(found.doubled)} |",
        f"| holes in records | {len(found.holes)} |",
        f"| unequal adapters, of {found.compared} compared | {len(found.unequal)} |",
        "",
        f"From a fault to the next recorded step of any job: {_show_times(times)}.",
        "",
        "| fault | times | median s | longest s |",
        "|---|--:|--:|--:|",
        *(_fault_line(kind, count, found.recoveries_s) for kind, count in sorted(found.faults.items())),
        "",
        "| process | watched s | MiB | rise MiB | descriptors | |",
        "|---|--:|--:|--:|--:|---|",
        *(
            f"| {each.name} | {each.seconds:.0f} | {each.rss_mib:.0f} | {each.rise_mib:+.1f}"
            f" | {each.descriptors[0]} → {each.descriptors[1]} | {'flat' if each.is_flat else '**rises**'} |"
            for each in found.processes
        ),
    ]
    for name in ("lost", "doubled", "holes", "unequal", "left_behind"):
        lines += [f"- {name}: {each}" for each in getattr(found, name)]
    return "\n".join(lines) + "\n"


def write_report(found: Findings, folder: Path) -> None:
    """Write `soak.md` and `soak.json` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.md").write_text(format_report(found), encoding="utf-8")
    (folder / "soak.json").write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")


def find_unequal(digests: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the groups whose digests are not all the same."""
    return [
        f"{group}: {', '.join(sorted(set(each)))}" for group, each in digests.items() if len(set(each)) > 1
    ]


def _fault_line(kind: str, count: int, recoveries_s: Mapping[str, Sequence[float]]) -> str:
    times = recoveries_s.get(kind, ())
    if not times:
        return f"| {kind} | {count} | | |"
    return f"| {kind} | {count} | {median(times):.1f} | {max(times):.1f} |"


def _show_times(times: Sequence[float]) -> str:
    return (
        f"median {median(times):.1f} s, longest {max(times):.1f} s"
        if times
        else "nothing was recorded after any"
    )
