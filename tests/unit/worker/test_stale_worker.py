"""A worker whose work was taken over writes nothing more: neither a record nor a checkpoint, a state, an artefact.

Two halves. By reading the code: every transaction of a worker is fenced, so that a new one without a fence fails here.
By trying it: each writer is called by an owner that has been replaced, on both databases.
"""

import ast
import inspect
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import select

from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.control_law import MonitorState
from app.domain.job import State, WorkKind
from app.domain.risk_table import unmeasured_row
from app.domain.safety_spec import AdaptiveKL, Monitor
from app.domain.step_record import StepRecord
from app.errors import LeaseLost, StorageFull
from app.keys.service import DEFAULT_PROJECT
from app.models.base import Base
from app.models.job import Checkpoint
from app.models.work import Work
from app.serve import prepare
from app.settings import Settings
from app.storage import Stored
from app.work import repository
from tests.conftest import BACKENDS, POSTGRESQL
from tests.support import add_job, database_on, settings_in
from tests.unit.worker.conftest import MakeSpec
from worker import checkpoints, evaluator, exporter, process, publisher, trainer
from worker.context import Context
from worker.journal import Journal
from worker.lease import Lease
from worker.process import KINDS
from worker.training import loop
from worker.training.checkpoint import CheckpointInfo
from worker.training.critics.judge import LiveScore
from worker.training.loop import Drift

ROOT = Path(__file__).parents[3]
DIGEST = "a" * 64

UNFENCED = {
    "worker/process.py::run": "the claim itself, by compare-and-set",
    "worker/lease.py::_beat": "the renewal, which is of an epoch by its own condition",
    "worker/celery_app.py::_tell_liveness": "the worker's sign of life, which is no work",
    "worker/abandoned.py::give_back": "of a process that has died: it raises the epoch first, by compare-and-set",
    "worker/miniature/install.py::install": "a command at the machine, which does no claimed work",
}
FENCE = re.compile(
    r"((self|\w+)\.)*(lease|_lease)\.load|self\.load|self\._append|journal\.append_(published|gate)"
)
"""What raises LeaseLost under another epoch: Lease.load locks and compares, an appended leaf is a compare-and-set."""
HARMLESS = ("take_storage",)
"""It writes nothing, and locks the project, which everybody locks before work."""


# --- by reading the code ------------------------------------------------------------------------------------


def transactions() -> Iterator[tuple[str, ast.With]]:
    """Yield every `with unit_of_work(…)` of the worker, by the file and the function that it stands in."""
    for path in sorted((ROOT / "worker").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.With) and any(is_writing(item.context_expr) for item in node.items):
                    yield f"{path.relative_to(ROOT).as_posix()}::{function.name}", node


def is_writing(expression: ast.expr) -> bool:
    return isinstance(expression, ast.Call) and ast.unparse(expression.func).split(".")[-1] == "unit_of_work"


def is_fenced(block: ast.With) -> bool:
    """Tell whether the first call that gets a transaction's session is a fence, and depends on no condition.

    It may stand in a loop, which is how a long list is recorded leaf by leaf.
    """
    session = next(ast.unparse(i.optional_vars) for i in block.items if i.optional_vars is not None)
    for statement in block.body:
        for call in calls_in(statement):
            function = ast.unparse(call.func)
            is_given = any(ast.unparse(each) == session for each in call.args)
            if function in HARMLESS or not (is_given or function.startswith(f"{session}.")):
                continue
            is_sure = isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign | ast.For)
            return is_sure and is_given and FENCE.fullmatch(function) is not None
    return False


def calls_in(node: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls of a statement in the order in which they are made: arguments first."""
    for child in ast.iter_child_nodes(node):
        yield from calls_in(child)
    if isinstance(node, ast.Call):
        yield node


def test_every_transaction_of_a_worker_is_fenced() -> None:
    found = list(transactions())
    assert len(found) > 25
    bare = {name for name, block in found if not is_fenced(block)}
    assert bare == set(UNFENCED), (
        "a write without a fence: call lease.load(session) first, or say why it needs none"
    )


def test_a_write_without_a_fence_would_be_found() -> None:
    def is_kept(body: str) -> bool:
        tree = ast.parse(f"with unit_of_work(d) as session:\n    {body}")
        return is_fenced(cast(ast.With, tree.body[0]))

    assert is_kept("work = context.lease.load(session); job.step = 3")
    assert is_kept("work_service.end(session, context.lease.load(session), state)")
    assert is_kept("repository.move(session, self.load(session), after)")
    assert is_kept("self._append(session, 'step', leaf)")
    assert not is_kept("job.step = 3")
    assert not is_kept("rows = json.load(file); session.add(rows)")
    assert not is_kept("rows = torch.load(session)")
    assert not is_kept("session.add(row); context.lease.load(session)")
    assert not is_kept("repository.note(session, row); context.lease.load(session)")
    assert not is_kept("if row: context.lease.load(session)")
    assert not is_kept("context.lease.load(other); session.add(row)")


def test_no_worker_writes_where_it_says_that_it_reads() -> None:
    for path in sorted((ROOT / "worker").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.With) and any(
                "read_only" in ast.unparse(i.context_expr) for i in node.items
            ):
                calls = {ast.unparse(c.func) for c in ast.walk(node) if isinstance(c, ast.Call)}
                assert not calls & {"session.add", "session.delete", "session.merge"}, f"{path}: {calls}"


# --- by trying it -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A job's first owner, after a second one took the job over. Nothing that a test does may change anything here."""

    database: Database
    settings: Settings
    lease: Lease


@pytest.fixture(scope="module", params=BACKENDS)
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One job for all tests of this file, once on each database."""
    folder = tmp_path_factory.mktemp("stale")
    with database_on(request.param, folder, POSTGRESQL) as url:
        settings = settings_in(folder / "home", database_url=url)
        prepare(settings)
        database = Database(open_engine(url), lambda _: None)
        job_id = add_job(database, folder, safety={"method": "none"})
        leases = []
        for owner in ("first", "second"):
            with unit_of_work(database) as session:
                if leases:
                    work = session.get_one(Work, job_id)
                    assert repository.take_over(session, work)
                    repository.move(session, work, State.QUEUED)
            with unit_of_work(database) as session:
                claimed = repository.claim(session, job_id, owner=owner, lease_ms=30_000)
            assert claimed is not None
            leases.append(Lease(database, settings, claimed))
        yield Stage(database, settings, leases[0])
        database.engine.dispose()


@pytest.fixture
def stale(stage: Stage) -> Context:
    """The surroundings of the first owner."""
    return Context(stage.database, stage.settings, stage.lease)


@pytest.fixture
def journal(stale: Context, make_spec: MakeSpec) -> Journal:
    """The stale owner's journal, of a job that has a monitor."""
    safety = AdaptiveKL(method="adaptive_kl", monitor=Monitor(limit=0.1, action="pause"))
    return Journal(stale, make_spec(safety=safety), critic_sha256=None, policy_sha256="d" * 64)


def snapshot(context: Context) -> tuple[dict[str, list[tuple[Any, ...]]], set[str]]:
    """Return every row of every table, and every stored file."""
    with read_only(context.database) as session:
        rows = {
            table.name: sorted(map(tuple, session.execute(select(table))), key=repr)
            for table in Base.metadata.sorted_tables
        }
    return rows, {str(path) for path in context.settings.storage_dir.rglob("*") if path.is_file()}


def record() -> StepRecord:
    numbers = {field.name: 0.5 for field in fields(StepRecord) if field.default is MISSING}
    counted = {"step": 1, "data_epoch": 0, "rows": (0, 1), "tokens": 10}
    return StepRecord(**{**numbers, **counted})  # type: ignore[arg-type]


LIVE = LiveScore(0, 0.5, "judged", (), 1, ())

JOURNAL: dict[str, Callable[[Journal], object]] = {
    "begin": lambda journal: journal.begin(
        from_step=0,
        total_steps=9,
        checkpoint_sha256=None,
        environment={},
        device="cpu",
        micro_batch_tokens=4096,
    ),
    "plan_steps": lambda journal: journal.plan_steps(3),
    "record_reference_pass": lambda journal: journal.record_reference_pass(
        [unmeasured_row(0, DIGEST)], dropped=0, fitted=[], anchors={}, alignment={}
    ),
    "record_step": lambda journal: journal.record_step(record()),
    "record_drift": lambda journal: journal.record_drift(Drift(1, 0.5, MonitorState())),
    "record_live": lambda journal: journal.record_live(1, [LIVE]),
    "record_validation": lambda journal: journal.record_validation(1, 0.5, 0.5),
    "record_checkpoint": lambda journal: journal.record_checkpoint(
        step=1,
        kind="interval",
        folder="step-1",
        files={"adapter.safetensors": DIGEST},
        name=None,
        adapter_sha256=None,
        stored=None,
        host="here",
        size_bytes=1,
    ),
    "record_invalid": lambda journal: journal.record_invalid(
        Checkpoint(id="ckpt", step=1, digest=DIGEST), "changed", instead=None
    ),
    "begin_pause": lambda journal: journal.begin_pause(),
    "end_training": lambda journal: journal.end_training(),
    "record_gate_start": lambda journal: journal.record_gate_start([]),
}


def test_every_writer_of_the_journal_is_tried() -> None:
    writing = {
        name
        for name, method in inspect.getmembers(Journal, inspect.isfunction)
        if "unit_of_work(" in inspect.getsource(method)
    }
    assert set(JOURNAL) == writing


@pytest.mark.parametrize("writer", JOURNAL)
def test_the_journal_of_a_stale_worker_writes_nothing(stale: Context, journal: Journal, writer: str) -> None:
    before = snapshot(stale)
    with pytest.raises(LeaseLost, match="epoch"):
        JOURNAL[writer](journal)
    assert snapshot(stale) == before


def commit_checkpoint(context: Context, journal: Journal) -> None:
    folder = context.checkpoint_folder / "step-1"
    folder.mkdir(parents=True, exist_ok=True)
    info = CheckpointInfo(path=folder, step=1, digest=DIGEST, files={}, size_bytes=1)
    checkpoint = loop.Checkpoint(info, "interval", 0)
    job = cast(Any, SimpleNamespace(id=context.lease.work_id, model="model", suffix=None))
    checkpoints.commit_checkpoint(context, journal, job, checkpoint, None)


def publish(context: Context, journal: Journal) -> None:
    adapter = publisher.StoredAdapter(Stored(DIGEST, 1), {}, {}, cast(Any, None))
    publisher.publish(context, journal, adapter, cast(Any, None), None)


def keep_evaluation(context: Context, _: Journal) -> None:
    result = SimpleNamespace(to_body=dict)
    evaluator._keep(context, DEFAULT_PROJECT, cast(Any, SimpleNamespace(replies=[], result=result)))


def pause_for_a_judge(context: Context, _: Journal) -> None:
    from app.errors import CriticUnusable

    def fail(_: Context) -> None:
        raise CriticUnusable("the judge is away", code="critic_failing")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_train", fail)
        trainer.train(context)


OTHERS: dict[str, Callable[[Context, Journal], object]] = {
    "move": lambda context, _: context.lease.move(State.RUNNING),
    "commit_checkpoint": commit_checkpoint,
    "tell_surroundings": lambda context, _: checkpoints.tell_surroundings(context, {}, "cpu"),
    "pause_for_room": lambda context, _: checkpoints.pause_for_room(context, StorageFull("full")),
    "publish": publish,
    "keep_evaluation": keep_evaluation,
    "export_batch": lambda context, _: exporter._commit_batch(context, until=1),
    "export_wait": lambda context, _: exporter._wait_for_server(context, "away"),
    "pause_for_a_judge": pause_for_a_judge,
}


@pytest.mark.parametrize("writer", OTHERS)
def test_no_other_writer_of_a_stale_worker_changes_anything(
    stale: Context, journal: Journal, writer: str
) -> None:
    before, files_before = snapshot(stale)
    with pytest.raises(LeaseLost, match="epoch"):
        OTHERS[writer](stale, journal)
    after, files_after = snapshot(stale)
    assert after == before
    # What is stored by its digest before the transaction is nobody's, and goes with the rest of that kind.
    assert files_before <= files_after


@pytest.mark.parametrize(
    "end",
    [
        lambda context: process._end(context, State.SUCCEEDED, None),
        lambda context: process._end(context, State.FAILED, {"code": "x", "message": "x", "param": None}),
        lambda context: process._end(context, State.CANCELLED, None),
        lambda context: process._split(context, reason="x"),
        lambda context: process._postpone(context, reason="x"),
        lambda context: process._give_back(context, reason="x"),
    ],
)
def test_a_stale_worker_neither_ends_its_work_nor_gives_it_back(
    stale: Context, end: Callable[[Context], object]
) -> None:
    before = snapshot(stale)
    assert not end(stale)
    assert snapshot(stale) == before


@pytest.mark.parametrize("kind", WorkKind)
def test_a_stale_worker_is_told_and_ends(
    stale: Context, kind: WorkKind, caplog: pytest.LogCaptureFixture
) -> None:
    """Every kind of work, from the process's point of view: it ends with 1, says why, and has changed nothing."""

    def work(context: Context) -> None:
        context.lease.move(State.RUNNING)

    before = snapshot(stale)
    with read_only(stale.database) as session:
        row = session.get_one(Work, stale.lease.work_id)
        session.expunge(row)
    row.kind, row.epoch = kind, stale.lease.epoch
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setitem(KINDS, kind, work)
        assert process._do(stale.database, stale.settings, row) == 1
    assert "no longer owned under epoch" in caplog.text
    assert snapshot(stale) == before
