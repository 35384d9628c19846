"""The rows that a job learns from: how risky each is, what became of it, and how often it was seen.

The risks are those of the reference pass, as the job's record has them. A live judge may have raised one since; its scores
are in the records of the steps.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, Literal

from sqlalchemy.orm import Session

from app import storage
from app.audit.repository import load_risk_table
from app.domain.control_law import compute_alpha, compute_row_beta
from app.domain.conversion import begin_text, to_chat
from app.domain.dataset import parse_rows, read_lines
from app.errors import StorageUnavailable
from app.jobs import repository
from app.models.job import Job
from app.storage import Place

Sort = Literal["risk", "row"]


def list_examples(
    session: Session, job: Job, *, sort: Sort, after: int | None, limit: int
) -> list[dict[str, Any]]:
    """Return up to limit + 1 rows after the row `after` in their order; none before the reference pass.

    `risk` puts the riskiest first, with rows that nothing measured at the end. A row's beta is its own, before the
    run-level monitor raises it; it is null where the row is not trained on or all rows of a step share one.
    """
    entries = [json.loads(entry) for entry in load_risk_table(session, job.id)]
    if sort == "risk":
        entries.sort(key=lambda entry: (entry["s"] is None, -(entry["s"] or 0.0), entry["row"]))
    start = 0
    if after is not None:
        start = 1 + next((at for at, entry in enumerate(entries) if entry["row"] == after), len(entries))
    chosen = entries[start : start + limit + 1]
    seen = _count_seen(session, job) if chosen else None
    return [_example(job, entry, seen) for entry in chosen]


def add_texts(place: Place, sha256: str | None, examples: Collection[dict[str, Any]]) -> None:
    """Add the beginning of each row's text from the training file's bytes, or null where they are there no more."""
    wanted = {example["row"] for example in examples}
    texts = {} if sha256 is None or not wanted else _read_texts(place, sha256, wanted)
    for example in examples:
        example["text"] = texts.get(example["row"])


def _read_texts(place: Place, sha256: str, wanted: Collection[int]) -> dict[int, str]:
    last, found = max(wanted), {}
    try:
        with storage.open_stored(place, sha256) as file:
            for row, line in enumerate(read_lines(file)):
                if row in wanted:
                    found[row] = begin_text(to_chat(parse_rows([line])[0]))
                if row == last:
                    break
    except StorageUnavailable:
        # The numbers are worth showing without the texts, which are then null.
        return {}
    return found


def _example(job: Job, entry: Mapping[str, Any], seen: "_Seen | None") -> dict[str, Any]:
    safety = (job.spec or job.request)["safety"]
    s, treatment = entry["s"], entry.get("treatment", "own")
    beta = None
    if treatment != "drop" and safety.get("scope") != "batch" and _is_resolved(safety):
        beta = compute_row_beta(safety, s)
    return {
        "object": "fine_tuning.job.example",
        "row": entry["row"],
        "risk": s,
        "status": entry["status"],
        "treatment": treatment,
        "alpha": None if beta is None else compute_alpha(beta),
        "beta": beta,
        "times_seen": None if seen is None else 0 if treatment == "drop" else seen.times(entry["row"]),
    }


def _is_resolved(safety: Mapping[str, Any]) -> bool:
    """Say whether nothing of what a row's beta depends on is still to be chosen."""
    return safety.get("threshold") != "auto"


class _Seen:
    """How often each row has been trained on: once in every pass before the last one, and perhaps in that."""

    def __init__(self, passes: int, in_this: Collection[int]) -> None:
        self._passes = passes
        self._in_this = in_this

    def times(self, row: int) -> int:
        return self._passes + (row in self._in_this)


def _count_seen(session: Session, job: Job) -> _Seen | None:
    """Return how often rows were seen; None where the records that say so were pruned."""
    if job.pruned_at is not None:
        return None
    newest = repository.get_newest_record(session, job.id)
    if newest is None:
        return _Seen(0, ())
    data_epoch: int = newest["data_epoch"]
    if job.step == job.total_steps:
        return _Seen(data_epoch + 1, ())
    return _Seen(data_epoch, repository.list_rows_since_pass(session, job, data_epoch))
