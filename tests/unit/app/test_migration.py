"""The migrations build exactly the schema that the code declares."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from pydantic import TypeAdapter
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import IntegrityError

from app.database import open_engine
from app.domain.safety_spec import AdaptiveKL, AnySafety, Safety
from app.domain.training_spec import TrainingSpec
from app.errors import ConfigurationError
from app.migration import alembic_config, check_schema, current_revision, migrate, newest_revision
from app.models.base import Base


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[Engine]:
    """An engine on an empty database."""
    engine = open_engine(empty_database_url)
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


REQUEST_1: dict[str, Any] = {
    "hyperparameters": {"batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": "auto"},
    "training": {
        "adapter": "lora",
        "lora_r": 16,
        "lora_alpha": 32,
        "learning_rate": "auto",
        "max_seq_length": "auto",
        "overlength": "error",
        "warmup_ratio": 0.03,
        "lr_scheduler": "linear",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "eval_interval": "auto",
        "checkpoint_interval_s": 60.0,
    },
    "safety": {
        "method": "adaptive_kl",
        "critic": {"type": "activation", "id": "critic_1"},
        "beta_min": 0.0,
        "beta_max": 0.99,
        "schedule": "linear",
        "threshold": 0.5,
    },
}
"""What a job of 0001 with the default preset kept of its request."""
SPEC_1: dict[str, Any] = {
    **REQUEST_1["training"],
    "batch_size": 8,
    "learning_rate_multiplier": 1.0,
    "n_epochs": 3,
    "learning_rate": 2e-3,
    "max_seq_length": 512,
    "eval_interval": 10,
    "seed": 1,
    "safety": REQUEST_1["safety"],
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

    def test_database_of_a_newer_version_is_refused_and_left_alone(self, engine: Engine) -> None:
        migrate(engine)
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(ConfigurationError, match=r"at revision 9999; a newer version .* backup"):
            migrate(engine)
        with engine.connect() as connection:
            assert current_revision(connection) == "9999"


class TestRevision2:
    """What was there before 0002 is there after it, with what 0002 says of it; and the other way round."""

    def insert(self, engine: Engine, **changes: dict[str, Any]) -> None:
        """Insert a row into every table, as 0001 has them."""
        with engine.begin() as connection:
            for table, row in BEFORE_2.items():
                changed = {**row, **changes.get(table, {})}
                columns = ", ".join(changed)
                places = ", ".join(f":{name}" for name in changed)
                insertion = f"INSERT INTO {table} ({columns}) VALUES ({places})"  # noqa: S608  (Our own names.)
                connection.execute(text(insertion), changed)

    def job(self, engine: Engine) -> tuple[Any, Any]:
        """Return request and spec of the job."""
        with engine.connect() as connection:
            (found,) = connection.execute(text("SELECT request, spec FROM jobs")).all()
        request, spec = (json.loads(each) if isinstance(each, str) else each for each in found)
        return request, spec

    @pytest.mark.parametrize("is_resolved", [True, False])
    def test_unfinished_job_goes_on_as_it_began(self, engine: Engine, is_resolved: bool) -> None:
        go_to(engine, "0001")
        spec = SPEC_1 if is_resolved else None
        self.insert(engine, jobs={"request": json.dumps(REQUEST_1), "spec": spec and json.dumps(spec)})
        migrate(engine)
        request, migrated = self.job(engine)
        # Every default of today that would change what 0001 did.
        added = {"replay": False, "anchors": None, "monitor": None}
        assert request == {**REQUEST_1, "safety": {**REQUEST_1["safety"], **added}}
        assert migrated == (spec and {**spec, "safety": {**spec["safety"], **added}})
        safety: AnySafety = TypeAdapter(Safety).validate_python(request["safety"])
        assert isinstance(safety, AdaptiveKL)
        assert (safety.replay, safety.anchors, safety.monitor) == (False, None, None)
        assert (safety.threshold, safety.s_scale, safety.scope) == (0.5, "points", "example")
        if migrated is not None:
            assert TrainingSpec.model_validate(migrated).safety == safety
        go_to(engine, "0001")
        assert self.job(engine) == (REQUEST_1, spec)

    @pytest.mark.parametrize("method", ["fixed_kl", "none"])
    def test_other_methods_need_nothing(self, engine: Engine, method: str) -> None:
        go_to(engine, "0001")
        safety = {"method": method, "critic": None, **({"beta": 0.3} if method == "fixed_kl" else {})}
        request, spec = {**REQUEST_1, "safety": safety}, {**SPEC_1, "safety": safety}
        self.insert(engine, jobs={"request": json.dumps(request), "spec": json.dumps(spec)})
        migrate(engine)
        assert self.job(engine) == (request, spec)
        now = TrainingSpec.model_validate(spec).safety
        assert (now.anchors, now.monitor) == (None, None)

    def test_keys_become_operators_and_critics_have_no_threshold(self, engine: Engine) -> None:
        go_to(engine, "0001")
        self.insert(engine)
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


class TestRevision5:
    def test_critics_of_before_are_of_the_category_harm(self, engine: Engine) -> None:
        go_to(engine, "0001")
        TestRevision2().insert(engine)
        migrate(engine)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT id, category FROM critics")).all() == [
                ("critic_1", "harm")
            ]
        with pytest.raises(IntegrityError), engine.begin() as connection:
            connection.execute(text("UPDATE critics SET category = NULL"))
        # The job refers to the critic, so that the table of critics cannot be dropped and made anew.
        go_to(engine, "0004")
        with engine.connect() as connection:
            (found,) = connection.execute(text("SELECT * FROM critics")).mappings()
            assert (found["id"], "category" in found) == ("critic_1", False)


class TestRevision8:
    def test_result_files_of_before_are_of_their_job(self, engine: Engine) -> None:
        # A job that waits for its signature shows none of them, and a legal hold on a job keeps them.
        go_to(engine, "0001")
        TestRevision2().insert(engine, work={"state": "signing"}, jobs={"result_files": '["file-1"]'})
        migrate(engine)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT id, job_id FROM files")).all() == [("file-1", "ftjob-1")]


class TestDowngrade:
    def test_every_step_can_be_undone_and_done_again(self, engine: Engine) -> None:
        migrate(engine)
        go_to(engine, "base")
        with engine.connect() as connection:
            assert inspect(connection).get_table_names() == ["alembic_version"]
            assert current_revision(connection) is None
        migrate(engine)


class TestCheckSchema:
    def test_older_and_newer_are_refused_with_what_to_do(self, engine: Engine) -> None:
        with pytest.raises(ConfigurationError, match=r"at revision None.*run: tether migrate"):
            check_schema(engine)
        go_to(engine, "0001")
        with pytest.raises(ConfigurationError, match=r"at revision 0001.*run: tether migrate"):
            check_schema(engine)
        migrate(engine)
        check_schema(engine)
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(ConfigurationError, match=r"at revision 9999.*a newer version of Tether made it"):
            check_schema(engine)
