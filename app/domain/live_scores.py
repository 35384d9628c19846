"""What a live judge said during the training, as the record has it. Standard library only."""

from collections.abc import Mapping
from typing import Any

from app.domain.leaf_schema import Leaf
from app.domain.safety_law import measure_recorded
from app.domain.verification import JobSoFar


def check_scores(job: JobSoFar, safety: Mapping[str, Any]) -> None:
    """Raise ValueError unless each live score of the record at hand was due and is what its votes give."""
    judge = _live_judge(safety)
    every = judge["every"]
    _, newest = next(reversed(job.live), (0, 0))
    seen = set()
    for score in job.body["scores"]:
        row, asked_at = score["row"], score["asked_at"]
        if row not in job.s_of_row or row in job.dropped_rows:
            raise ValueError(f"a live score of row {row}, which is not trained on")
        if asked_at % every or asked_at > len(job.steps):
            raise ValueError(f"a live score asked for after step {asked_at}, where none was due")
        if asked_at < newest or (row, asked_at) in job.live or (row, asked_at) in seen:
            raise ValueError(f"the live score of row {row} after step {asked_at} comes late, or twice")
        newest = asked_at
        seen.add((row, asked_at))
        for name, value in zip(("status", "s"), _measure(job, judge, score), strict=True):
            if score[name] != value:
                raise ValueError(f"row {row} has the live {name} {score[name]}; its votes give {value}")


def _measure(job: JobSoFar, judge: Leaf, score: Leaf) -> tuple[str, float]:
    try:
        return measure_recorded(judge, job.readings_of_row.get(score["row"], {}), score["votes"])
    except ValueError:
        # Nobody has graded the answer and nothing fills in: missing evidence is maximal risk.
        return "failed", 1.0


def _live_judge(safety: Mapping[str, Any]) -> Leaf:
    """Return the live judge of a spec, alone or as a part; its `every` is a number of steps."""
    critic = safety.get("critic")
    parts = critic.get("critics", [critic]) if isinstance(critic, dict) else []
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict) and (part.get("type"), part.get("mode")) == ("judge", "live"):
            every = part.get("every")
            if isinstance(every, int) and not isinstance(every, bool) and every >= 1:
                return part
    raise ValueError("live scores, but the spec has no live judge")
