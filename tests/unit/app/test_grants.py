"""The roles of the processes, on a real PostgreSQL: each does its work, and none changes what is on record."""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from app.database import Database, open_engine, unit_of_work
from app.domain.job import State, WorkKind
from app.domain.scopes import Role
from app.errors import InvalidRequest
from app.grants import API, NOTARY, WORKER, format_grants, rights_of
from app.keys.service import DEFAULT_PROJECT, add_key, revoke_key
from app.keys.service import OPERATOR_AT_THE_MACHINE as OPERATOR
from app.migration import migrate
from app.models.base import Base
from app.models.work import Work
from app.notary.service import rotate_key, run_notary
from app.reconciler import reconcile
from app.settings import Settings
from app.storage import Stored
from app.work.release import release_signed
from app.work.repository import add_work, claim, move, record_worker, renew
from tests.conftest import POSTGRESQL
from tests.integration.released import record_end
from tests.support import add_job, collect, database_on, settings_in

needs_postgresql = pytest.mark.skipif(
    POSTGRESQL is None, reason="TETHER_TEST_DATABASE_URL names no PostgreSQL"
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path / "home")


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[dict[str, Database]]:
    """The same database as its owner sees it, and each process under its own role."""
    assert POSTGRESQL is not None
    prefix = f"tether_{uuid.uuid4().hex[:12]}"
    with database_on("postgresql", tmp_path, POSTGRESQL) as url:
        owner = Database(open_engine(url), collect([]))
        migrate(owner.engine)
        schema = url.rpartition("search_path%3D")[2]
        with psycopg.connect(POSTGRESQL, autocommit=True) as connection:
            # Twice, as after an upgrade that brought tables.
            for _ in range(2):
                connection.execute(format_grants(prefix, schema))  # type: ignore[arg-type]
        databases = {"owner": owner}
        for part in (API, WORKER, NOTARY):
            databases[part] = Database(open_engine(f"{url}%20-crole%3D{prefix}_{part}"), collect([]))
        yield databases
        for database in databases.values():
            database.engine.dispose()
        with psycopg.connect(POSTGRESQL, autocommit=True) as connection:
            for part in (API, WORKER, NOTARY):
                role = sql.Identifier(f"{prefix}_{part}")
                connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
                connection.execute(sql.SQL("DROP ROLE {}").format(role))


def denied(database: Database, *statements: str) -> None:
    """Check that the database lets a role do none of this."""
    for statement in statements:
        with (
            pytest.raises(ProgrammingError, match="permission denied"),
            database.engine.begin() as connection,
        ):
            connection.execute(text(statement))


@needs_postgresql
def test_each_part_does_its_work_under_its_role(
    parts: dict[str, Database], settings: Settings, tmp_path: Path
) -> None:
    job_id = add_job(parts[API], tmp_path)
    with unit_of_work(parts[API]) as session:
        key = add_key(session, name="k", role=Role.MEMBER).row.id
    with unit_of_work(parts[API]) as session:
        revoke_key(session, OPERATOR, key)
    with unit_of_work(parts[WORKER]) as session:
        record_worker(session, worker_id="worker_1", queue="gpu", host="h")
        work = claim(session, job_id, owner="worker_1", lease_ms=60_000)
        assert work is not None
        renew(session, job_id, work.epoch, lease_ms=60_000)
        record_end(session, work, Stored("d" * 64, 10))
        for state in (State.RUNNING, State.FINALISING, State.SIGNING):
            move(session, work, state)
    reconcile(parts[API], settings)
    stop = threading.Event()
    notary = threading.Thread(target=run_notary, args=(parts[NOTARY], settings, stop))
    notary.start()
    try:
        for _ in range(600):
            release_signed(parts[API])
            with unit_of_work(parts["owner"]) as session:
                if session.get_one(Work, job_id).state == State.SUCCEEDED:
                    break
            stop.wait(0.05)
    finally:
        stop.set()
        notary.join()
    with unit_of_work(parts["owner"]) as session:
        assert session.get_one(Work, job_id).state == State.SUCCEEDED
    rotate_key(parts[NOTARY], settings)


@needs_postgresql
def test_none_changes_what_is_on_record(parts: dict[str, Database]) -> None:
    with unit_of_work(parts["owner"]) as session:
        add_key(session, name="k", role=Role.MEMBER)
        add_work(session, kind=WorkKind.TRAIN, queue="gpu", project_id=DEFAULT_PROJECT, args={})
    for part in (API, WORKER, NOTARY):
        denied(
            parts[part],
            "UPDATE ledger_leaves SET leaf = ''",
            "DELETE FROM ledger_leaves",
            "TRUNCATE ledger_leaves CASCADE",
            "INSERT INTO ledger_unlocks VALUES (1)",
            "UPDATE log_leaves SET leaf = ''",
            "DELETE FROM log_heads",
            "DELETE FROM log_checkpoints",
            "UPDATE log_events SET leaf = ''",
            "DELETE FROM log_events",
        )
        with pytest.raises(ProgrammingError, match="must be owner"), parts[part].engine.begin() as connection:
            connection.execute(text("DROP TRIGGER tether_log_leaves_update ON log_leaves"))
    for part in (API, WORKER):
        denied(
            parts[part],
            "INSERT INTO log_leaves VALUES (1, 0, '')",
            "INSERT INTO log_checkpoints SELECT * FROM log_checkpoints",
        )
        denied(
            parts[part],
            "DELETE FROM legal_holds",
            "UPDATE legal_holds SET released_at = now()",
            "INSERT INTO pruned_jobs SELECT * FROM pruned_jobs",
            "DELETE FROM pruned_jobs",
            "DELETE FROM risk_rows",
            "UPDATE risk_rows SET entry = ''",
            "DELETE FROM job_decisions",
            "UPDATE job_decisions SET decision = 'approved'",
        )
    denied(parts[API], "INSERT INTO risk_rows SELECT * FROM risk_rows")
    denied(parts[WORKER], "INSERT INTO job_decisions SELECT * FROM job_decisions")
    denied(parts[WORKER], "SELECT key_digest FROM api_keys", "UPDATE policies SET name = 'x'")
    denied(
        parts[NOTARY], "UPDATE work SET state = 'succeeded'", "SELECT * FROM api_keys", "SELECT * FROM files"
    )


def test_every_table_is_thought_of() -> None:
    for part in (API, WORKER, NOTARY):
        assert set(rights_of(part)) <= {*Base.metadata.tables, "alembic_version"}
    assert set(Base.metadata.tables) - set(rights_of(API)) == {"ledger_unlocks"}


@pytest.mark.parametrize("name", ["", "Tether", "a b", "a;drop table work", 'a"', "x" * 60])
def test_a_name_that_would_be_more_than_a_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot name it"):
        format_grants(name, "public")
    with pytest.raises(InvalidRequest, match="cannot name it"):
        format_grants("tether", name)
