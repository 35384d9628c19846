"""What the verifier reports: which checks there are, in which order, and what came of each.

Standard library only.
"""

from dataclasses import asdict, dataclass
from typing import Literal

CHECKS = (
    "records",
    "sequence",
    "chain",
    "root",
    "signature",
    "grammar",
    "attempts",
    "risk table",
    "control law",
    "coverage",
    "training file",
    "adapter",
    "end",
    "sets",
    "plan",
    "lineage",
    "heads",
)
"""The names of the checks, in order; their numbers count from 1. A new one comes last: a number never changes."""

EXIT_OK = 0
EXIT_CODES = {name: 10 + number for number, name in enumerate(CHECKS, start=1)}
"""The exit code of a command whose first failed check is this one."""

Outcome = Literal["ok", "failed", "not checked"]


@dataclass(frozen=True, slots=True)
class Check:
    """What came of one check."""

    name: str
    outcome: Outcome
    detail: str
    first_bad: int | None = None
    """The line, from 0, of the first record that breaks the check; None where no single record does."""
    first_bad_in: str | None = None
    """The member that `first_bad` counts in: leaves.jsonl (there the line is `seq`) or risk_table.jsonl."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the verifier found. `ok` promises only what the checks with outcome "ok" say."""

    checks: tuple[Check, ...]
    job: str | None = None
    size: int | None = None
    root: str | None = None
    state: str | None = None
    """How the job ended, by its record; None where the record does not say."""
    protection: str = "unknown: the record does not say by which method the job was trained"

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.outcome != "failed" for check in self.checks)

    @property
    def exit_code(self) -> int:
        """EXIT_OK, or the code of the first check that failed."""
        failed = (EXIT_CODES[check.name] for check in self.checks if check.outcome == "failed")
        return next(failed, EXIT_OK)

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain JSON values."""
        return {
            "object": "verification_report",
            "ok": self.ok,
            "exit_code": self.exit_code,
            "job": self.job,
            "size": self.size,
            "root": self.root,
            "state": self.state,
            "protection": self.protection,
            "checks": [
                {"number": number, **asdict(check)} for number, check in enumerate(self.checks, start=1)
            ],
        }

    def lines(self) -> list[str]:
        """Return the report for people: what it is about, one line per check, and the verdict."""
        result = [
            f"job {self.job or '?'}: {'?' if self.size is None else self.size} records,"
            f" state {self.state or 'not ended'}, root {self.root or '?'}",
            f"protection: {self.protection}",
        ]
        for number, check in enumerate(self.checks, start=1):
            where = "" if check.first_bad is None else f" [{check.first_bad_in} line {check.first_bad}]"
            result.append(f"{number:>2} {check.name:<13} {check.outcome:<11} {check.detail}{where}")
        failed = sum(check.outcome == "failed" for check in self.checks)
        skipped = sum(check.outcome == "not checked" for check in self.checks)
        verdict = "no check failed" if self.ok else f"{failed} of {len(self.checks)} checks FAILED"
        result.append(f"{verdict}; {skipped} not checked")
        return result
