"""The gate: what a policy's limits make of what was found, at the start of a job and before its adapter is released.

Plain arithmetic on recorded numbers, so that the verifier does it again. What was not found breaks its limit: missing
evidence is never a pass. Standard library only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

Side = Literal["least", "most"]
Stage = Literal["start", "end"]


class Kind(NamedTuple):
    """What kind of limit it is."""

    side: Side
    """Whether the bound is the least that is good enough or the most that is let pass."""
    stage: Stage
    """When it is known: after the reference pass and before the first step, or after the last step."""


GATE = "gate"
"""Who asked for a pause that a policy's gate wants."""

LIMITS: dict[str, Kind] = {
    "critic_auroc": Kind("least", "start"),
    "critic_recall": Kind("least", "start"),
    "fallback_share": Kind("most", "start"),
    "attack_success_increase": Kind("most", "end"),
    "over_refusal_increase": Kind("most", "end"),
    "utility_loss": Kind("most", "end"),
}
"""Every limit that a policy may set."""

CRITIC_QUALITY = {"critic_auroc": "auroc", "critic_recall": "tpr_at_1_percent_fpr"}
"""What each limit on a critic reads of its report."""

UTILITY = ("task_score", "exact_match", "rouge_l")
"""What of an evaluation says how well the task is done; each is a share."""

ACTIONS = ("warn", "tighten", "pause", "hold", "fail")
"""What a broken limit does, the mildest first."""

START_VERDICTS = ("pass", "warn", "tighten", "pause", "fail")
VERDICTS = ("pass", "warn", "hold", "fail")
"""What comes of all limits together, the mildest first."""
PASSING = ("pass", "warn")
"""The verdicts with which weights may leave without a person's decision."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A limit, what was found, and whether that breaks it."""

    limit: str
    found: float | None
    """None where there is no evidence; that breaks the limit."""
    bound: float
    action: str
    beta_min: float | None
    """Of the action tighten: the KL weight that no row then falls below."""
    broken: bool

    def to_body(self) -> dict[str, Any]:
        """Return plain JSON, as leaves and the wire have it."""
        return asdict(self)


def judge(limit: str, bound: float, action: str, beta_min: float | None, found: float | None) -> Finding:
    """Return the finding of a limit."""
    return Finding(limit, found, bound, action, beta_min, is_broken(limit, bound, found))


def is_broken(limit: str, bound: float, found: float | None) -> bool:
    """Say whether what was found is beyond a bound. Nothing is."""
    if found is None:
        return True
    return found < bound if LIMITS[limit].side == "least" else found > bound


def start_verdict(findings: Sequence[Mapping[str, Any]]) -> str:
    """Return what the limits that are known at the start come to, given in their plain form.

    A limit that holds the job does so at its end; until then it is a warning.
    """
    return _worst(findings, START_VERDICTS)


def end_verdict(findings: Sequence[Mapping[str, Any]]) -> str:
    """Return what all limits come to before the release. What was dealt with at the start is a warning now."""
    return _worst(findings, VERDICTS)


def _worst(findings: Sequence[Mapping[str, Any]], verdicts: Sequence[str]) -> str:
    broken = [each["action"] for each in findings if each["broken"]]
    said = [action if action in verdicts else "warn" for action in broken]
    return max(said, key=verdicts.index, default="pass")


def start_floor(findings: Sequence[Mapping[str, Any]]) -> float:
    """Return the KL weight that no row falls below in any step: 0 where nothing was tightened."""
    return max(
        (float(each["beta_min"]) for each in findings if each["broken"] and each["action"] == "tighten"),
        default=0.0,
    )


def fallback_share(counts: Mapping[str, int]) -> float | None:
    """Return the share of rows that the critic itself did not measure, from the `counts` of the risk table.

    Of these rows a fallback read some, and nobody the others. None where there are no rows.
    """
    rows = sum(counts.values())
    missed = sum(counts.get(status, 0) for status in ("fallback", "failed", "unmeasured"))
    return missed / rows if rows else None


def find_in_evaluation(limit: str, comparisons: Sequence[Mapping[str, Any]]) -> float | None:
    """Return what an evaluation says of a limit, from its comparisons in their plain form.

    Of every decoding and every judge the worst counts, and of each the end of its 95 % interval that is the worst case:
    a suite that is too small to tell does not pass. A prompt without a verdict counts as one that got worse. None where
    nothing of the kind was compared, or something of the kind was not measured.
    """
    quantities, falls = _QUANTITIES[limit]
    changes = [
        _worst_change(each, falls=falls)
        for each in comparisons
        if str(each["name"]).partition(".")[0] in quantities
    ]
    known = [change for change in changes if change is not None]
    return max(known) if known and len(known) == len(changes) else None


_QUANTITIES: dict[str, tuple[tuple[str, ...], bool]] = {
    "attack_success_increase": (("attack_success",), False),
    "over_refusal_increase": (("over_refusal",), False),
    "utility_loss": (UTILITY, True),
}
"""What of an evaluation each limit reads, and whether a fall of it is the loss."""


def _worst_change(comparison: Mapping[str, Any], *, falls: bool) -> float | None:
    difference = comparison["difference"]
    bound, n, unjudged = difference["low" if falls else "high"], difference["n"], comparison["unjudged"]
    if bound is None or n < 1:
        return None
    change = -float(bound) if falls else float(bound)
    return float(change + (1.0 - change) * (unjudged / (n + unjudged)))


def describe(finding: Mapping[str, Any]) -> str:
    """Return a finding in words, for events and errors."""
    found = "nothing was found" if finding["found"] is None else f"{finding['found']:.4g}"
    bound = f"at {LIMITS[finding['limit']].side} {finding['bound']:.4g}"
    return f"{finding['limit']}: {found}, the policy asks for {bound}"
