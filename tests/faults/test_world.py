"""The world of the model: it moves as the real one does, it holds the clocks apart, and its checks can fail."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from app.database import unit_of_work
from app.seat_belts import unfasten
from tests.faults.virtual import SIGKILLED, STARTED_AT_MS
from tests.faults.world import Stage, World
from worker.lease import HUNG, LOST

JOB, WORKER = "job-1", "worker-1"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A place for stories."""
    stage = Stage(tmp_path_factory.mktemp("stage"))
    yield stage
    stage.engine.dispose()


@pytest.fixture
def world(stage: Stage) -> Iterator[World]:
    """A world with one queued job."""
    world = World(stage)
    world.create(JOB)
    yield world
    world.close()


def train_until(world: World, steps: int) -> None:
    """Have a worker train until so many steps are on record, and stand right before its next transaction."""
    world.knock(WORKER)
    for _ in range(100):
        if len(world.jobs[JOB].steps) == steps:
            return
        world.step(WORKER, 1)
    raise AssertionError(f"{len(world.jobs[JOB].steps)} steps after 100 transactions")


def state_of(world: World) -> str:
    row = world.jobs[JOB].row
    assert row is not None
    return row.state


def lease_until_ms(world: World) -> int:
    found: int = world.looker.execute("SELECT lease_until_ms FROM work").fetchone()[0]
    return found


def database_ms(world: World) -> float:
    return STARTED_AT_MS + 1000 * (world.machine.now_s + world.machine.database_offset_s)


def test_an_undisturbed_job_succeeds(world: World) -> None:
    world.end_all()
    assert state_of(world) == "succeeded"


def test_a_slow_worker_keeps_its_lease_by_its_heartbeat(world: World) -> None:
    train_until(world, 1)
    for _ in range(5):
        world.pass_time(50)
        world.repair("reconciler", 1000)
    assert state_of(world) == "running"


def test_a_worker_that_gets_nowhere_exits_and_its_work_is_given_back_at_once(world: World) -> None:
    train_until(world, 1)
    world.pass_time(world.settings.stall_s + 5)
    process = world.actors[WORKER]
    assert process.code == HUNG
    world.bury(process)
    assert state_of(world) == "queued"
    world.end_all()


def test_a_worker_that_was_taken_over_exits_though_it_hangs(world: World) -> None:
    train_until(world, 1)
    world.disturb(WORKER, "stop")
    world.pass_time(70)
    world.repair("reconciler", 1000)
    world.disturb(WORKER, "continue")
    world.pass_time(world.settings.lease_s)
    assert world.actors[WORKER].code == LOST


def test_a_worker_that_was_stopped_before_a_commit_writes_nothing_afterwards(world: World) -> None:
    train_until(world, 1)
    world.disturb(WORKER, "stop")
    world.pass_time(70)
    world.repair("reconciler", 1000)
    assert state_of(world) == "queued"
    before = world.jobs[JOB].leaves
    world.disturb(WORKER, "continue")
    world.step(WORKER, 100)
    assert world.jobs[JOB].leaves == before
    world.end_all()


def test_a_job_that_is_cancelled_while_it_is_published_does_not_succeed(world: World) -> None:
    train_until(world, 5)
    while state_of(world) != "finalising":
        world.step(WORKER, 1)
    assert world.ask("cancel", JOB)
    world.step(WORKER, 100)
    assert state_of(world) == "cancelled"
    world.end_all()


def test_leases_run_by_the_clock_of_the_database_alone(world: World) -> None:
    # The machine's own clock says another year.
    train_until(world, 1)
    assert lease_until_ms(world) == pytest.approx(database_ms(world) + 60_000, abs=100)
    world.machine.database_offset_s -= 3600
    world.pass_time(10.5)
    assert lease_until_ms(world) == pytest.approx(database_ms(world) + 60_000, abs=1000)


def test_a_killed_process_is_gone_where_it_stands(world: World) -> None:
    train_until(world, 2)
    before = world.jobs[JOB].leaves
    world.kill(WORKER, is_seen=True)
    assert world.actors[WORKER].code == SIGKILLED
    assert (state_of(world), world.jobs[JOB].leaves) == ("queued", before)
    world.end_all()


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE work SET state = 'succeeded'", "job-1"),
        ("UPDATE work SET owner = 'somebody else'", "two owners"),
        ("UPDATE work SET ledger_size = ledger_size + 1", "job-1"),
        ("UPDATE work SET attempts_without_progress = 4", "job-1"),
        (
            "INSERT INTO ledger_leaves SELECT work_id, seq + 5, leaf FROM ledger_leaves WHERE seq = 0",
            "a hole",
        ),
    ],
)
def test_what_must_never_be_is_noticed(world: World, statement: str, says: str) -> None:
    train_until(world, 1)
    with unit_of_work(world.database) as session:
        unfasten(session.connection())
        session.execute(text(statement))
        # A row that did not change is not looked at again.
        session.execute(text("UPDATE work SET attempt = attempt + 1"))
    with pytest.raises(AssertionError, match=says):
        world.look("a test")


def test_a_terminal_state_that_is_left_is_noticed(world: World) -> None:
    assert world.ask("cancel", JOB)
    assert state_of(world) == "cancelled"
    with unit_of_work(world.database) as session:
        unfasten(session.connection())
        session.execute(text("UPDATE work SET state = 'queued'"))
    with pytest.raises(AssertionError, match="a terminal state was left"):
        world.look("a test")


def test_a_job_that_nobody_can_end_is_noticed(world: World) -> None:
    with unit_of_work(world.database) as session:
        session.execute(text("UPDATE work SET queue = 'nobody'"))
    with pytest.raises(AssertionError, match="never end"):
        world.end_all()
