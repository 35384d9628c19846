"""The migrations build exactly the schema that the code declares."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import IntegrityError

from app.database import open_engine
from app.migration import alembic_config, current_revision, migrate, newest_revision
from app.models.base import Base


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on an empty database."""
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def go_to(engine: Engine, revision: str) -> None:
    """Upgrade or downgrade to a revision."""
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        known = current_revision(connection)
        (command.upgrade if known is None else command.downgrade)(config, revision)


NOW = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001  (As SQLite keeps it.)
BEFORE_2: dict[str, dict[str, Any]] = {
    "projects": {"id": "proj_1", "name": "First", "created_at": NOW},
    "api_keys": {"id": "key_1", "project_id": "proj_1", "name": "a", "key_digest": "d", "created_at": NOW},
    "base_models": {
        "name": "model",
        "path": "/model",
        "digest": "d",
        "files": "{}",
        "hidden_size": 8,
        "max_position_embeddings": 8,
        "created_at": NOW,
    },
    "critics": {
        "id": "critic_1",
        "base_model": "model",
        "base_digest": "d",
        "digest": "d",
        "files": "{}",
        "report": "{}",
        "low": -1.5,
        "high": 2.5,
        "created_at": NOW,
    },
    "work": {
        "id": "ftjob-1",
        "project_id": "proj_1",
        "kind": "train",
        "queue": "gpu",
        "args": "{}",
        "state": "queued",
        "desired": "run",
        "epoch": 0,
        "attempt": 0,
        "attempts_without_progress": 0,
        "infrastructure_failures": 0,
        "ledger_size": 0,
        "ledger_head": "d",
        "created_at": NOW,
    },
    "files": {
        "id": "file-1",
        "project_id": "proj_1",
        "filename": "rows.jsonl",
        "purpose": "fine-tune",
        "size_bytes": 1,
        "sha256": "d",
        "status": "processed",
        "commitment_key": b"k",
        "created_at": NOW,
    },
    "jobs": {
        "id": "ftjob-1",
        "project_id": "proj_1",
        "model": "model",
        "training_file": "file-1",
        "critic_id": "critic_1",
        "seed": 1,
        "request": "{}",
        "step": 0,
        "result_files": "[]",
        "created_at": NOW,
    },
}


class TestMigrate:
    def test_builds_the_declared_schema(self, engine: Engine) -> None:
        migrate(engine)
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "compare_server_default": True}
            )
            assert compare_metadata(context, Base.metadata) == []
            assert current_revision(connection) == newest_revision()

    def test_again_does_nothing(self, engine: Engine) -> None:
        migrate(engine)
        migrate(engine)
        with engine.connect() as connection:
            assert current_revision(connection) == newest_revision()

    def test_failure_leaves_nothing_behind(self, engine: Engine) -> None:
        # The last table of the first migration is there already, so that it fails near its end.
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE steps (n INTEGER)")
        with pytest.raises(Exception, match="already exists"):
            migrate(engine)
        with engine.connect() as connection:
            assert set(inspect(connection).get_table_names()) == {"steps"}


class TestRevision2:
    """What was there before 0002 is there after it, with what 0002 says of it; and the other way round."""

    def test_keys_become_operators_and_critics_have_no_threshold(self, engine: Engine) -> None:
        go_to(engine, "0001")
        with engine.begin() as connection:
            for table, row in BEFORE_2.items():
                columns = ", ".join(row)
                places = ", ".join(f":{name}" for name in row)
                insertion = f"INSERT INTO {table} ({columns}) VALUES ({places})"  # noqa: S608  (Our own names.)
                connection.execute(text(insertion), row)
        migrate(engine)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT id, role FROM api_keys")).all() == [("key_1", "operator")]
            assert connection.execute(text("SELECT id, threshold FROM critics")).all() == [("critic_1", None)]
        with pytest.raises(IntegrityError), engine.begin() as connection:
            connection.execute(text("UPDATE api_keys SET role = NULL"))
        # The job refers to the critic, so that the table of critics cannot be dropped and made anew.
        go_to(engine, "0001")
        with engine.connect() as connection:
            for table, row in BEFORE_2.items():
                everything = text(f"SELECT * FROM {table}")  # noqa: S608  (As above.)
                (found,) = connection.execute(everything).mappings()
                assert found.keys() >= row.keys()
                assert "role" not in found
                assert "threshold" not in found


class TestDowngrade:
    def test_every_step_can_be_undone_and_done_again(self, engine: Engine) -> None:
        migrate(engine)
        go_to(engine, "base")
        with engine.connect() as connection:
            assert inspect(connection).get_table_names() == ["alembic_version"]
            assert current_revision(connection) is None
        migrate(engine)
