"""The check of the plan: which rows each step took, at which learning rate, and how many steps there were.

Steps of version 1 are not held to a plan, and steps with alignment data of version 1, which does not say which of its rows
were too long. Standard library only.
"""

from collections.abc import Callable, Sequence
from typing import Any

from app.domain.safety_law import compute_lr, law_of, layout_of
from app.domain.step_plan import anchor_places, plan_step, total_steps
from app.domain.verification import Broken, JobSoFar, NotChecked, Run, counted, ensured

LR_TOLERANCE = 1e-12
"""Share of the peak by which a learning rate may be off: not every machine's cosine has the same last bit."""


def _plan_each(job: JobSoFar) -> None:
    if job.kind != "step" or job.version == 1 or not _is_known(job):
        return
    step = job.body
    try:
        job.run = job.run or _read_run(job)
        expected = _planned(job, job.run)
        lr = compute_lr(job, job.run.layout, step["step"])
    except ValueError as error:
        raise Broken(str(error), job.seq) from error
    for name, value in expected.items():
        if step[name] != value:
            raise Broken(f"{name} is {_show(step[name])}; the plan gives {_show(value)}", job.seq)
    tolerance = LR_TOLERANCE * ensured(job.spec)["learning_rate"]
    if isinstance(step["lr"], str) or abs(step["lr"] - lr) > tolerance:
        raise Broken(f"lr is {step['lr']}; the schedule gives {lr}", job.seq)


def _is_known(job: JobSoFar) -> bool:
    """Tell whether the record says what the plan is made of."""
    return job.alignment is None or "dropped" in job.alignment


def _read_run(job: JobSoFar) -> Run:
    """Return what the plan is made of; table and sets are on record before the first step."""
    rows = tuple(row for row in job.s_of_row if row not in job.dropped_rows)
    alignment: tuple[int, ...] = ()
    if job.alignment is not None:
        dropped = set(job.alignment["dropped"])
        alignment = tuple(row for row in range(job.alignment["rows"]) if row not in dropped)
    anchors = tuple(entry["row"] for entry in job.anchors["trained"]) if job.anchors else ()
    layout = layout_of(job, n_rows=len(rows), n_alignment=len(alignment))
    return Run(layout, rows, alignment, anchors)


def _planned(job: JobSoFar, run: Run) -> dict[str, Any]:
    """Return the fields of a step that are the plan's. Raises ValueError for a step beyond its end."""
    law, step = law_of(job), job.body["step"]
    plan = plan_step(law, run.layout, step)
    anchors = anchor_places(law, step, n_anchors=len(run.anchors), seed=run.layout.seed)
    return {
        "data_epoch": plan.data_epoch,
        "rows": [run.rows[place] for place in plan.rows],
        "alignment_rows": [run.alignment[place] for place in plan.alignment],
        "anchors": [run.anchors[place] for place in anchors],
    }


def _show(value: Any) -> str:
    if not isinstance(value, Sequence) or len(value) <= 8:
        return str(value)
    return f"{counted(len(value), 'row')} from {value[0]} to {value[-1]}"


def _plan_at_end(job: JobSoFar) -> str:
    if not _is_known(job):
        raise NotChecked(
            "alignment data of version 1: the record does not say which of its rows were too long"
        )
    if job.run is None:
        raise NotChecked("no step of version 2 was recorded")
    steps, planned = len(job.steps), total_steps(law_of(job), job.run.layout)
    if job.end is not None and job.end["state"] == "succeeded" and steps != planned:
        raise Broken(
            f"the job succeeded after {counted(steps, 'step')}; the plan has {planned}", job.tree.size - 1
        )
    return f"{steps} of {counted(planned, 'step')}, each on the rows and at the learning rate that the plan gives"


EACH: dict[str, Callable[[JobSoFar], None]] = {"plan": _plan_each}
AT_END: dict[str, Callable[[JobSoFar], str]] = {"plan": _plan_at_end}
