"""Which fault comes when: a pure function of the seed."""

import random
from collections.abc import Iterator
from typing import NamedTuple

WEIGHTS = {
    "kill a trainer": 6,
    "stop a trainer": 3,
    "kill a worker": 2,
    "drain a worker": 2,
    "kill an API": 2,
    "kill a reconciler": 2,
    "stop a reconciler": 1,
    "kill the notary": 1,
    "empty Redis": 2,
    "restart Redis": 2,
    "crash PostgreSQL": 2,
    "cut every connection": 3,
    "fill the disk at a checkpoint": 2,
    "fill the disk at an upload": 1,
}
"""How often each kind comes, against the others."""
FIRST_S = 15.0
"""Nothing fails before: everything has started, and something is being trained."""


class Fault(NamedTuple):
    """One fault."""

    at_s: float
    """Since the beginning."""
    kind: str
    draw: float
    """A number from 0 to 1 by which one of several processes is chosen."""


def plan_faults(seed: int, seconds: float, *, mean_pause_s: float) -> Iterator[Fault]:
    """Yield the faults of so many seconds, in order."""
    random_source = random.Random(f"faults {seed}")  # noqa: S311  (It is to come again.)
    at_s = FIRST_S
    while at_s < seconds:
        kind = random_source.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        yield Fault(at_s, kind, random_source.random())
        at_s += random_source.expovariate(1 / mean_pause_s)
