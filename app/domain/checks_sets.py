"""The check of the registered sets: anchors, what the monitor watches, alignment data. Standard library only."""

from collections.abc import Callable

from app.domain.leaf_schema import Leaf
from app.domain.safety_law import law_of
from app.domain.verification import Broken, JobSoFar, NotChecked, counted, ensured

_ALIGNED = ("vaccine", "lisa", "antidote", "safety_mix")
"""Methods that cannot do without a set of alignment data."""
_MIXING = ("safety_mix",)
"""Of these, the methods whose steps take the user's rows and alignment rows together."""
_AFTERWARDS = ("antidote",)
"""Of these, the methods that no step takes alignment rows for."""


def _sets_each(job: JobSoFar) -> None:
    try:
        match job.kind:
            case "anchors":
                _check_anchors(job)
            case "alignment":
                _check_named(job, "alignment", wanted=_needs_alignment(job))
            case "step":
                _check_step(job)
    except ValueError as error:
        raise Broken(str(error), job.seq) from error


def _check_anchors(job: JobSoFar) -> None:
    law, body = law_of(job), job.body
    _check_named(job, "anchors", wanted=_needs_anchors(job))
    for name, part in (("trained", "anchors"), ("monitored", "monitor")):
        rows = [entry["row"] for entry in body[name]]
        if rows != sorted(set(rows)):
            raise ValueError(f"{name} has rows out of order, or one twice")
        if bool(rows) is not (law[part] is not None):
            raise ValueError(
                f"{name} has {counted(len(rows), 'row')}; safety.{part} is {(law[part] and 'given') or 'null'}"
            )
    both = _rows(body, "trained") & _rows(body, "monitored")
    if both:
        raise ValueError(f"anchor {min(both)} is trained on and watched; what is watched must be kept apart")


def _check_named(job: JobSoFar, name: str, *, wanted: bool) -> None:
    if not wanted:
        raise ValueError(f"the spec has no use for {name}")
    created = ensured(job.created).get(name)
    found = {field: job.body[field] for field in ("id", "sha256")}
    if found != created:
        raise ValueError(f"the set is {found['id']}, {found['sha256']}; the job was created with {created}")


def _check_step(job: JobSoFar) -> None:
    law, step = law_of(job), job.body
    if _needs_anchors(job) and job.anchors is None:
        raise ValueError("a step before the anchors that the spec asks for")
    if _needs_alignment(job) and job.alignment is None:
        raise ValueError("a step before the alignment set that the method needs")
    if job.version == 1:
        return
    trained = _rows(job.anchors, "trained") if job.anchors else set()
    wanted = min(law["anchors"]["per_step"], len(trained)) if law["anchors"] else 0
    if len(step["anchors"]) != wanted:
        raise ValueError(f"the step has {counted(len(step['anchors']), 'anchor')}; the spec gives {wanted}")
    stranger = next((row for row in step["anchors"] if row not in trained), None)
    if stranger is not None:
        raise ValueError(f"anchor {stranger} is not among those that are trained on")
    if (step["anchor_kl"] is None) is bool(wanted):
        raise ValueError(f"anchor_kl is {step['anchor_kl']} with {counted(wanted, 'anchor')}")
    _check_alignment_rows(job)


def _check_alignment_rows(job: JobSoFar) -> None:
    method, step = law_of(job)["method"], job.body
    rows = step["alignment_rows"]
    if rows and (method not in _ALIGNED or method in _AFTERWARDS):
        raise ValueError(f"the method {method} has no steps on alignment rows")
    if rows and max(rows) >= ensured(job.alignment)["rows"]:
        raise ValueError(
            f"alignment row {max(rows)} of a set of {ensured(job.alignment)['rows']} rows (from 0)"
        )
    if rows and step["rows"] and method not in _MIXING:
        raise ValueError(f"the step has the user's rows and alignment rows; {method} takes them by turns")
    if method != "vaccine" or not rows:
        return
    if step["data_epoch"] or any(each.rows for each in job.steps):
        raise ValueError("alignment rows after the user's; the alignment stage of vaccine comes first")


def _needs_anchors(job: JobSoFar) -> bool:
    law = law_of(job)
    return law["anchors"] is not None or law["monitor"] is not None


def _needs_alignment(job: JobSoFar) -> bool:
    return law_of(job)["method"] in _ALIGNED


def _rows(body: Leaf, name: str) -> set[int]:
    return {entry["row"] for entry in body[name]}


def _sets_at_end(job: JobSoFar) -> str:
    if not job.steps:
        raise NotChecked("no step was recorded")
    found = []
    if job.anchors is not None:
        trained, monitored = (len(job.anchors[name]) for name in ("trained", "monitored"))
        found.append(f"{counted(trained, 'anchor')} trained on, {monitored} watched")
    if job.alignment is not None:
        found.append(f"alignment data of {counted(job.alignment['rows'], 'row')}")
    return "; ".join(found) or "the spec needs none"


EACH: dict[str, Callable[[JobSoFar], None]] = {"sets": _sets_each}
AT_END: dict[str, Callable[[JobSoFar], str]] = {"sets": _sets_at_end}
