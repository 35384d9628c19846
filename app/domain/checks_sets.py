"""The check of the registered sets: anchors, what the monitor watches, alignment data. Standard library only."""

from collections.abc import Callable

from app.domain.safety_law import law_of
from app.domain.step_plan import split_anchors
from app.domain.verification import Broken, JobSoFar, NotChecked, counted, ensured

_ALIGNED = ("vaccine", "lisa", "antidote", "safety_mix")
"""Methods that cannot do without a set of alignment data."""


def _sets_each(job: JobSoFar) -> None:
    try:
        match job.kind:
            case "anchors":
                _check_anchors(job)
            case "alignment":
                _check_alignment(job)
            case "step":
                _check_step(job)
    except ValueError as error:
        raise Broken(str(error), job.seq) from error


def _check_anchors(job: JobSoFar) -> None:
    law, body = law_of(job), job.body
    _check_named(job, "anchors", wanted=_needs_anchors(job))
    if job.version == 1:
        _check_parts(job)
        return
    parts = zip(("trained", "monitored"), ("anchors", "monitor"), split_anchors(body["rows"]), strict=True)
    for name, field, part in parts:
        expected = list(part) if law[field] is not None else []
        found = [entry["row"] for entry in body[name]]
        if found != expected:
            raise ValueError(
                f"{name} has {counted(len(found), 'row')}; of a set of {body['rows']} with safety.{field}"
                f" {'null' if law[field] is None else 'given'} it must be the {len(expected)} that the plan gives"
            )


def _check_parts(job: JobSoFar) -> None:
    """Check anchors of version 1, which does not say how large the set is."""
    law, body = law_of(job), job.body
    trained, monitored = ([entry["row"] for entry in body[name]] for name in ("trained", "monitored"))
    for name, field, rows in (("trained", "anchors", trained), ("monitored", "monitor", monitored)):
        if rows != sorted(set(rows)):
            raise ValueError(f"{name} has rows out of order, or one twice")
        if bool(rows) is (law[field] is None):
            raise ValueError(
                f"{name} has {counted(len(rows), 'row')}, but safety.{field} is {'null' if rows else 'given'}"
            )
    both = set(trained) & set(monitored)
    if both:
        raise ValueError(f"anchor {min(both)} is trained on and watched; what is watched must be kept apart")


def _check_alignment(job: JobSoFar) -> None:
    _check_named(job, "alignment", wanted=_needs_alignment(job))
    if job.version == 1:
        return
    rows, dropped = job.body["rows"], job.body["dropped"]
    if dropped != sorted(set(dropped)) or (dropped and dropped[-1] >= rows):
        raise ValueError(f"dropped has rows out of order, one twice, or one beyond the {rows} of the set")
    if len(dropped) == rows:
        raise ValueError("every row of the set was dropped")


def _check_named(job: JobSoFar, name: str, *, wanted: bool) -> None:
    if not wanted:
        raise ValueError(f"the spec has no use for {name}")
    created = ensured(job.created).get(name)
    found = {field: job.body[field] for field in ("id", "sha256")}
    if found != created:
        raise ValueError(f"the set is {found['id']}, {found['sha256']}; the job was created with {created}")


def _check_step(job: JobSoFar) -> None:
    step = job.body
    if _needs_anchors(job) and job.anchors is None:
        raise ValueError("a step before the anchors that the spec asks for")
    if _needs_alignment(job) and job.alignment is None:
        raise ValueError("a step before the alignment set that the method needs")
    if job.version > 1 and (step["anchor_kl"] is None) is bool(step["anchors"]):
        raise ValueError(f"anchor_kl is {step['anchor_kl']} with {counted(len(step['anchors']), 'anchor')}")


def _needs_anchors(job: JobSoFar) -> bool:
    law = law_of(job)
    return law["anchors"] is not None or law["monitor"] is not None


def _needs_alignment(job: JobSoFar) -> bool:
    return law_of(job)["method"] in _ALIGNED


def _sets_at_end(job: JobSoFar) -> str:
    if not job.steps:
        raise NotChecked("no step was recorded")
    found = []
    if job.anchors is not None:
        trained, monitored = (len(job.anchors[name]) for name in ("trained", "monitored"))
        found.append(f"{counted(trained, 'anchor')} trained on, {monitored} watched")
    if job.alignment is not None:
        rows, dropped = counted(job.alignment["rows"], "row"), job.alignment.get("dropped")
        too_long = "" if dropped is None else f", {len(dropped)} of them too long"
        found.append(f"alignment data of {rows}{too_long}")
    return "; ".join(found) or "the spec needs none"


EACH: dict[str, Callable[[JobSoFar], None]] = {"sets": _sets_each}
AT_END: dict[str, Callable[[JobSoFar], str]] = {"sets": _sets_at_end}
