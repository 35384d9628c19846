"""Which rows each step of a run takes: the plan, which the trainer follows and an offline verifier replays.

Pure functions of the resolved `safety`, in its JSON form, and of a `Layout`. Rows are places in lists: the user's rows
that are trained on, in file order, without the overlong and the dropped ones; and the alignment set's rows that are not
too long. The order of the rows comes from seed and data epoch, so that the position in a run is one integer.
Standard library only.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

MONITORED_EVERY = 8
MAX_MONITORED = 16
ANCHOR_SEED_OFFSET = 1
"""Anchors go through their set in an order of their own."""

Safety = Mapping[str, Any]


class Layout(NamedTuple):
    """What decides which rows a step takes, beside the method."""

    n_rows: int
    """The user's rows that are trained on."""
    n_alignment: int
    """Rows of the alignment set that are not too long, 0 where the method has none."""
    batch_size: int
    n_epochs: int
    seed: int

    @property
    def user_steps(self) -> int:
        """The optimiser steps that all passes over the user's rows take."""
        return self.n_epochs * steps_per_epoch(self.n_rows, self.batch_size)


class StepPlan(NamedTuple):
    """What one optimiser step trains on, as places in the lists of rows."""

    data_epoch: int
    """The pass over the user's rows that the step belongs to, from 0."""
    rows: tuple[int, ...]
    alignment: tuple[int, ...] = ()


# --- the plan of every method -----------------------------------------------------------------------------


def total_steps(safety: Safety, layout: Layout) -> int:
    """Return the optimiser steps of a run.

    Vaccine has an alignment stage before the user's steps, lisa one stretch of alignment before each `user_steps`.
    """
    steps = layout.user_steps
    if safety["method"] == "vaccine":
        return _vaccine_steps(safety, layout) + steps
    if safety["method"] == "lisa":
        return steps + steps_per_epoch(steps, safety["user_steps"]) * int(safety["alignment_steps"])
    return steps


def plan_step(safety: Safety, layout: Layout, step: int) -> StepPlan:
    """Return what `step`, from 1 to `total_steps`, trains on. Raises ValueError for any other."""
    if not 1 <= step <= total_steps(safety, layout):
        raise ValueError(f"step {step} of a run of {total_steps(safety, layout)} steps")
    if safety["method"] == "vaccine":
        return _plan_vaccine(safety, layout, step)
    if safety["method"] == "lisa":
        return _plan_lisa(safety, layout, step)
    plan = _plan_plain(layout, step)
    if safety["method"] == "safety_mix":
        # As many of the alignment set as keep the share, spread evenly over the steps.
        per_step = safety["share"] * layout.batch_size
        return plan._replace(alignment=_cycled(layout, int((step - 1) * per_step), int(step * per_step)))
    return plan


def _plan_plain(layout: Layout, step: int) -> StepPlan:
    return step_rows(step, n_rows=layout.n_rows, batch_size=layout.batch_size, seed=layout.seed)


def _vaccine_steps(safety: Safety, layout: Layout) -> int:
    return int(safety["alignment_epochs"]) * steps_per_epoch(layout.n_alignment, layout.batch_size)


def _plan_vaccine(safety: Safety, layout: Layout, step: int) -> StepPlan:
    """Return the alignment set's rows in the first stage, the user's in the second."""
    first_stage = _vaccine_steps(safety, layout)
    if step > first_stage:
        return _plan_plain(layout, step - first_stage)
    aligned = step_rows(step, n_rows=layout.n_alignment, batch_size=layout.batch_size, seed=layout.seed)
    return StepPlan(0, (), aligned.rows)


def _plan_lisa(safety: Safety, layout: Layout, step: int) -> StepPlan:
    """Return alignment rows or the user's, by turns; alignment comes first, in the data epoch that follows it."""
    n_alignment, n_user = safety["alignment_steps"], safety["user_steps"]
    cycle, place = divmod(step - 1, n_alignment + n_user)
    if place >= n_alignment:
        return _plan_plain(layout, cycle * n_user + place - n_alignment + 1)
    data_epoch = _plan_plain(layout, cycle * n_user + 1).data_epoch
    first = (cycle * n_alignment + place) * layout.batch_size
    return StepPlan(data_epoch, (), _cycled(layout, first, first + layout.batch_size))


def _cycled(layout: Layout, first: int, end: int) -> tuple[int, ...]:
    return cycled_rows(range(first, end), layout.n_alignment, layout.seed)


# --- orders of rows ---------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def row_order(n_rows: int, seed: int, data_epoch: int) -> tuple[int, ...]:
    """Return a permutation of `range(n_rows)`: the rows sorted by SHA-256 of "seed/data_epoch/row".

    A hash rather than a random generator: no library's update can change it in the middle of a job, and anyone
    can replay it.
    """
    keys = [hashlib.sha256(f"{seed}/{data_epoch}/{row}".encode()).digest() for row in range(n_rows)]
    return tuple(sorted(range(n_rows), key=keys.__getitem__))


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Return the steps of one pass over the data; a short last batch counts."""
    return -(-n_rows // batch_size)


def step_rows(step: int, *, n_rows: int, batch_size: int, seed: int) -> StepPlan:
    """Return what `step`, counted from 1, takes of one list. The last batch of a data epoch may be short."""
    data_epoch, position = divmod(step - 1, steps_per_epoch(n_rows, batch_size))
    order = row_order(n_rows, seed, data_epoch)
    return StepPlan(data_epoch, order[position * batch_size : (position + 1) * batch_size])


def cycled_rows(draws: range, n_rows: int, seed: int) -> tuple[int, ...]:
    """Return the rows that these draws give, going through all rows in a new order each time."""
    return tuple(row_order(n_rows, seed, draw // n_rows)[draw % n_rows] for draw in draws)


# --- anchors ----------------------------------------------------------------------------------------------


def split_anchors(n_rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return which rows of a set of anchors may be trained on, and which are kept apart for the monitor."""
    monitored = tuple(range(MONITORED_EVERY - 1, n_rows, MONITORED_EVERY))[:MAX_MONITORED]
    return tuple(row for row in range(n_rows) if row not in monitored), monitored


def anchor_places(safety: Safety, step: int, *, n_anchors: int, seed: int) -> tuple[int, ...]:
    """Return the places, among the anchors that are trained on, of those that `step`, counted from 1, takes.

    All come in turn, each round in a new order.
    """
    anchors = safety.get("anchors")
    if anchors is None:
        return ()
    per_step = min(anchors["per_step"], n_anchors)
    draws = range((step - 1) * per_step, step * per_step)
    return cycled_rows(draws, n_anchors, seed + ANCHOR_SEED_OFFSET)
