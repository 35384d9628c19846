"""Any order of what clients, workers, repairs and clocks can do, against a small model of what must hold.

Hypothesis chooses the order. After every single transaction the model looks at every job, and at the end of a story one
healthy worker is left, under which every job must end. A story that breaks a rule is shrunk, and printed as the calls it is
made of and as what came of each.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.faults.conftest import SEED
from tests.faults.world import Stage, World

WORKERS = st.sampled_from(["worker-1", "worker-2"])
RECONCILERS = st.sampled_from(["reconciler-1", "reconciler-2"])
RELEASES = st.sampled_from(["releases-1", "releases-2"])
JOBS = st.sampled_from(["job-1", "job-1", "job-2", "job-3"])
RARELY = st.sampled_from([False, False, True])
A_FEW = st.sampled_from([1, 2, 3, 5, 8, 13, 20])
WHOLE_ROUND = 1000
PARTS_OF_A_ROUND = st.sampled_from([1, 5, 12, WHOLE_ROUND, WHOLE_ROUND])
SECONDS = st.sampled_from([1.0, 15.0, 40.0, 50.0, 70.0, 200.0])
JUMPS = st.sampled_from([-600.0, 86_400.0])


def guarded(do: Callable[..., None]) -> Callable[..., None]:
    """Have a story that fails tell what came before."""

    def guard(self: "Stories", **arguments: Any) -> None:
        try:
            do(self, **arguments)
        except BaseException:
            self.failed = True
            note("\n".join(self.world.log))
            raise

    guard.__name__ = do.__name__
    return guard


class Stories(RuleBasedStateMachine):
    """What can happen to jobs. Announcements decide nothing: a worker looks for work whenever it likes, or never."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.stage)
        self.failed = False

    def teardown(self) -> None:
        try:
            if not self.failed:
                self.end()
        finally:
            self.world.close()

    @guarded
    def end(self) -> None:
        self.world.end_all()

    @initialize(is_poison=RARELY)
    @guarded
    def begin(self, is_poison: bool) -> None:
        self.world.create("job-1", is_poison=is_poison)

    @precondition(lambda self: len(self.world.jobs) < 3)
    @rule(is_checked=st.booleans(), is_poison=RARELY)
    @guarded
    def create(self, is_checked: bool, is_poison: bool) -> None:
        name = f"job-{len(self.world.jobs) + 1}"
        self.world.create(name, is_checked=is_checked, is_poison=is_poison)

    @rule(worker=WORKERS, times=A_FEW)
    @guarded
    def work(self, worker: str, times: int) -> None:
        self.world.disturb(worker, "continue")
        self.world.knock(worker)
        self.world.step(worker, times)

    @rule(command=st.sampled_from(["pause", "resume", "cancel", "delete"]), job=JOBS)
    @guarded
    def ask(self, command: str, job: str) -> None:
        if job in self.world.jobs:
            self.world.ask(command, job)

    @rule(job=JOBS, status=st.sampled_from(["processed", "error"]))
    @guarded
    def finish_check(self, job: str, status: str) -> None:
        if job in self.world.jobs:
            self.world.finish_check(job, status)

    @rule(worker=WORKERS, is_seen=st.booleans())
    @guarded
    def kill(self, worker: str, is_seen: bool) -> None:
        self.world.kill(worker, is_seen=is_seen)

    @rule(worker=WORKERS, how=st.sampled_from(["stop", "terminate", "lose the storage"]))
    @guarded
    def disturb(self, worker: str, how: str) -> None:
        self.world.disturb(worker, how)

    @rule(worker=WORKERS, reconciler=RECONCILERS)
    @guarded
    def stop_past_the_lease(self, worker: str, reconciler: str) -> None:
        self.world.disturb(worker, "stop")
        self.world.pass_time(70)
        self.world.repair(reconciler, WHOLE_ROUND)

    @rule(reconciler=RECONCILERS, times=PARTS_OF_A_ROUND)
    @guarded
    def repair(self, reconciler: str, times: int) -> None:
        self.world.repair(reconciler, times)

    @rule()
    @guarded
    def sign(self) -> None:
        self.world.sign()

    @rule(releases=RELEASES, times=PARTS_OF_A_ROUND)
    @guarded
    def release(self, releases: str, times: int) -> None:
        self.world.release(releases, times)

    @rule(seconds=SECONDS)
    @guarded
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule(seconds=JUMPS)
    @guarded
    def jump(self, seconds: float) -> None:
        self.world.machine.database_offset_s += seconds


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A place for stories."""
    stage = Stage(tmp_path_factory.mktemp("stage"))
    # What a story says of itself is printed; the log of all stories before it would bury that.
    logging.disable(logging.CRITICAL)
    yield stage
    logging.disable(logging.NOTSET)
    stage.engine.dispose()


@pytest.mark.short
@pytest.mark.timeout(1200)
def test_no_order_of_things_loses_doubles_or_stops_a_job(
    stage: Stage, request: pytest.FixtureRequest
) -> None:
    examples = 40 if request.config.getoption("faults") else 12
    stories = seed(SEED)(type("Stories", (Stories,), {"stage": stage}))
    run_state_machine_as_test(
        stories,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
