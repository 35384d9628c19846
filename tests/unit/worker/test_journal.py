"""What a journal reads back of an earlier attempt, on a real database."""

from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update

from app.audit.repository import append_leaf, iterate_leaves, save_risk_table
from app.auth import Caller
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.canonical import canonical_bytes
from app.domain.control_law import MonitorState
from app.domain.job import Desired
from app.domain.ledger import kind_of, parse_leaf
from app.domain.risk_table import build_risk_table, unmeasured_row
from app.domain.safety_spec import (
    ActivationCritic,
    AdaptiveKL,
    CombinedCritic,
    ConstantCritic,
    JudgeCritic,
    Monitor,
)
from app.domain.step_record import StepRecord
from app.errors import JobFailure, LeaseLost
from app.jobs import repository as jobs
from app.keys.service import DEFAULT_PROJECT
from app.models.job import Job, LedgerLeaf, Step
from app.models.webhook import EventType
from app.models.work import Work
from app.serve import prepare
from app.webhooks.repository import list_deliveries
from app.webhooks.schemas import EndpointCreate
from app.webhooks.service import create_endpoint
from app.work import repository
from tests.support import add_job, settings_in, tampering
from tests.unit.app.domain import leaf_examples
from tests.unit.worker.conftest import MakeSpec
from worker.assignment import load_assignment, load_fitted
from worker.context import Context
from worker.journal import Journal
from worker.lease import Lease
from worker.training.loop import Drift


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """The surroundings of a claimed job."""
    settings = settings_in(tmp_path)
    prepare(settings)
    database = Database(open_engine(settings.database_url), lambda _: None)
    job = add_job(database, tmp_path, safety={"method": "none"})
    with unit_of_work(database) as session:
        claim = repository.claim(session, job, owner="test", lease_ms=30_000)
    assert claim is not None
    yield Context(database, settings, Lease(database, settings, claim))
    database.engine.dispose()


@pytest.fixture
def journal(context: Context, make_spec: MakeSpec) -> Journal:
    return Journal(context, make_spec(), critic_sha256=None, policy_sha256="d" * 64)


def save(context: Context, entries: list[bytes]) -> None:
    with unit_of_work(context.database) as session:
        save_risk_table(session, context.lease.work_id, entries)


def test_before_the_first_attempt_nothing_is_recorded(journal: Journal) -> None:
    assert (journal.load_risks(), journal.load_sets()) == ([], {})


def test_the_risk_table_comes_back(context: Context, journal: Journal) -> None:
    rows = [unmeasured_row(row, "a" * 64) for row in (0, 3)]
    entries, _ = build_risk_table(rows, dropped=2, critic_sha256=None)
    save(context, entries)
    assert journal.load_risks() == rows


@pytest.mark.parametrize("version", [1, 2])
def test_a_table_of_an_older_version_ends_the_job_in_words(
    context: Context, journal: Journal, version: int
) -> None:
    entry: dict[str, Any] = {"row": 0, "commitment": "a" * 64, "log_odds": None, "s": None}
    second = {"treatment": "own", "replay": None, "votes": []} if version == 2 else {}
    save(context, [canonical_bytes(entry | {"status": "unmeasured"} | second)])
    with pytest.raises(JobFailure, match="older version of Tether") as found:
        journal.load_risks()
    assert found.value.code == "job_from_older_version"


def test_a_critic_that_was_removed_ends_the_job_in_words(context: Context) -> None:
    judge = JudgeCritic(fallback="critic_gone")
    combined = CombinedCritic(critics=(judge, ConstantCritic(s=0.5)))
    for critic in (ActivationCritic(id="critic_gone"), judge, combined):
        with read_only(context.database) as session, pytest.raises(JobFailure, match="critic_gone") as found:
            list(load_fitted(session, AdaptiveKL(critic=critic)))
        assert found.value.code == "critic_not_found"


def test_a_job_accepted_by_an_older_version_is_not_begun(context: Context) -> None:
    with tampering(context.database) as session:
        first = session.get_one(LedgerLeaf, (context.lease.work_id, 0))
        first.leaf = leaf_examples.build("job.created/1", job=context.lease.work_id)
    with pytest.raises(JobFailure, match="Submit it again") as found:
        load_assignment(context)
    assert found.value.code == "job_from_older_version"


def test_the_sets_come_back_as_they_were_recorded(context: Context, journal: Journal) -> None:
    bodies = {kind: leaf_examples.BODIES[f"{kind}/2"] for kind in ("anchors", "alignment")}
    with unit_of_work(context.database) as session:
        for kind, body in bodies.items():
            append_leaf(session, context.lease.work_id, epoch=context.lease.epoch, kind=kind, body=body)
    assert journal.load_sets() == bodies


def test_a_drift_is_told_when_it_passes_the_limit(context: Context, make_spec: MakeSpec) -> None:
    safety = AdaptiveKL(method="adaptive_kl", monitor=Monitor(limit=0.1, action="warn"))
    journal = Journal(context, make_spec(safety=safety), critic_sha256=None, policy_sha256="d" * 64)
    body = EndpointCreate(
        name="CI", url="https://hooks.example/x", event_types=[EventType.SAFETY_ALERT, EventType.FAILED]
    )
    measured = [0.05, 0.2, 0.3, 0.1, float("nan")]
    with unit_of_work(context.database) as session:
        caller = Caller(project_id=DEFAULT_PROJECT, key_id="key_1")
        endpoint = create_endpoint(session, context.settings, caller, body)
        job = jobs.load_job(session, context.lease.work_id)
        for step in range(1, len(measured) + 1):
            jobs.save_step(session, job, step, {"step": step})
    told = []
    for step, kl in enumerate(measured, start=1):
        journal.record_drift(Drift(step, kl, MonitorState()))
        with unit_of_work(context.database) as session:
            told.append(len(list_deliveries(session, endpoint, after=None, limit=10)))
    # At steps 2 and 5: 0.3 is still the first excursion, and a drift that is no number is too much.
    assert told == [0, 1, 1, 1, 2]


def begin(journal: Journal) -> None:
    journal.begin(
        from_step=0,
        total_steps=9,
        checkpoint_sha256=None,
        environment={},
        device="cpu",
        micro_batch_tokens=4096,
    )


def do_step(journal: Journal, step: int) -> None:
    numbers = {field.name: 0.5 for field in fields(StepRecord) if field.default is MISSING}
    counted = {"step": step, "data_epoch": 0, "rows": (0, 1), "tokens": 10}
    journal.record_step(StepRecord(**{**numbers, **counted}))  # type: ignore[arg-type]


def kinds(context: Context) -> list[str]:
    with read_only(context.database) as session:
        leaves = [parse_leaf(leaf) for leaf in iterate_leaves(session, context.lease.work_id)]
    return [kind_of(leaf) for leaf in leaves]


def test_a_step_is_a_leaf_a_row_and_how_far_the_job_is(context: Context, journal: Journal) -> None:
    begin(journal)
    for step in (1, 2):
        do_step(journal, step)
    assert kinds(context) == ["job.created", "job.start", "step", "step"]
    with read_only(context.database) as session:
        job = jobs.load_job(session, context.lease.work_id)
        records = [step.record for step in jobs.list_steps(session, job, after=0, limit=None)]
    assert [record["step"] for record in records] == [1, 2]
    assert (job.step, job.trained_tokens, job.risk_mean, job.beta_mean) == (2, 20, None, 0.5)
    assert job.estimated_finish_at is not None


def test_a_step_sees_at_once_that_the_client_cancels(context: Context, journal: Journal) -> None:
    begin(journal)
    with unit_of_work(context.database) as session:
        repository.set_desired(session, context.lease.work_id, Desired.CANCEL)
    assert not context.cancelled
    do_step(journal, 1)
    assert context.cancelled


def test_a_pause_that_was_taken_back_does_not_stop_what_comes_after_the_last_step(
    context: Context, journal: Journal
) -> None:
    begin(journal)
    # As the last heartbeat found it; the client thought better of it since.
    context.lease.desired = Desired.PAUSE
    journal.end_training()
    context.check()
    with read_only(context.database) as session:
        assert session.get_one(Work, context.lease.work_id).state == "finalising"


def test_an_owner_of_before_records_no_step(context: Context, journal: Journal) -> None:
    begin(journal)
    with unit_of_work(context.database) as session:
        assert repository.take_over(session, session.get_one(Work, context.lease.work_id))
    with pytest.raises(LeaseLost, match="no longer owned"):
        do_step(journal, 1)
    assert kinds(context) == ["job.created", "job.start"]


def test_nobody_goes_on_after_steps_that_the_database_has_lost(context: Context, journal: Journal) -> None:
    begin(journal)
    with unit_of_work(context.database) as session:
        before = session.get_one(Work, context.lease.work_id).ledger_size
    do_step(journal, 1)
    # As a power cut of the database's machine leaves it: as if the step had never been committed.
    with tampering(context.database) as session:
        session.execute(delete(LedgerLeaf).where(LedgerLeaf.seq == before))
        session.execute(delete(Step))
        session.execute(update(Work).values(ledger_size=before))
        session.execute(update(Job).values(step=0))
    with pytest.raises(LeaseLost, match="has lost steps"):
        do_step(journal, 2)
    assert kinds(context) == ["job.created", "job.start"]
