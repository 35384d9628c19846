"""What the verifier reports: which checks there are, in which order, and what came of each.

Standard library only.
"""

from dataclasses import asdict, dataclass
from typing import Literal

NUMBERS = {
    "records": 1,
    "sequence": 2,
    "chain": 3,
    "root": 4,
    "signature": 5,
    "grammar": 6,
    "attempts": 7,
    "risk table": 8,
    "control law": 9,
    "coverage": 10,
    "training file": 11,
    "adapter": 12,
    "end": 13,
    "sets": 14,
    "plan": 15,
    "lineage": 16,
    "heads": 17,
    "evaluation": 18,
    "gate": 19,
    "retention": 20,
    "provenance": 21,
    "held": 22,
    "rows": 23,
}
"""The number of each check. A number never changes and is never given again; a new check takes the next one."""
CHECKS = tuple(sorted(NUMBERS, key=NUMBERS.__getitem__))
"""The names of the checks, in the order in which they are carried out."""

EXIT_OK = 0
EXIT_CODES = {name: 10 + number for name, number in NUMBERS.items()}
"""The exit code of a command whose first failed check is this one."""

Outcome = Literal["ok", "failed", "not checked"]
Signature = Literal["none", "unverified", "verified"]


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
    signature: Signature = "none"
    """Whether the bundle has a signature that counts. Unverified: nobody said whose would, or it or its heads failed."""
    signed: int = 0
    """How many records are under the signature that was verified."""
    unreadable: str | None = None
    """Why the file could not be read as a bundle at all."""

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
            "signature": self.signature,
            "signed_records": self.signed,
            "checks": [{"number": NUMBERS[check.name], **asdict(check)} for check in self.checks],
        }

    def lines(self) -> list[str]:
        """Return the report for people: what it is about, one line per check, and the verdict."""
        if self.unreadable is not None:
            return [f"FAILED: this is no evidence bundle that can be read: {self.unreadable}"]
        result = [
            f"job {self.job or '?'}: {'?' if self.size is None else self.size} records,"
            f" state {self.state or 'not ended'}, root {self.root or '?'}",
            f"protection: {self.protection}",
        ]
        for check in self.checks:
            where = "" if check.first_bad is None else f" [{check.first_bad_in} line {check.first_bad}]"
            result.append(
                f"{NUMBERS[check.name]:>2} {check.name:<13} {check.outcome:<11} {check.detail}{where}"
            )
        failed = sum(check.outcome == "failed" for check in self.checks)
        skipped = sum(check.outcome == "not checked" for check in self.checks)
        verdict = "no check failed" if self.ok else f"{failed} of {len(self.checks)} checks FAILED"
        result.append(f"{verdict}; {skipped} not checked; {self._describe_signature()}")
        return result

    def _describe_signature(self) -> str:
        if self.signature == "none":
            return "UNSIGNED: nothing here is under a signature"
        if self.signature == "unverified":
            return "the signature was NOT VERIFIED, and proves nothing"
        if not self.signed:
            return "NO record here is under the signature"
        if self.size is not None and self.signed < self.size:
            return f"the last {self.size - self.signed} of {self.size} records are NOT under the signature"
        return f"all {self.signed} records are under a signature that the policy trusts"
