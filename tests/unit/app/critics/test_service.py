"""Asking for a critic: what is checked before any work is added."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from app.critics.service import request_fit, store_requests
from app.database import Database, open_engine, read_only, unit_of_work
from app.errors import InvalidRequest, InvalidTrainingFile, NotFound, TetherError
from app.keys.service import ensure_admin_key
from app.migration import migrate
from app.models.work import Work
from tests.support import add_base_model, collect, settings_in

ROW = {"messages": [{"role": "user", "content": "hello"}], "label": 0, "group": "greetings"}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A database with a base model."""
    database = Database(open_engine(f"sqlite:///{tmp_path}/tether.db"), collect([]))
    migrate(database.engine)
    with unit_of_work(database) as session:
        ensure_admin_key(session, "key")
    add_base_model(database, "model", tmp_path / "model")
    yield database
    database.engine.dispose()


class TestRequestFit:
    def test_work_is_added_and_its_data_kept(self, database: Database, tmp_path: Path) -> None:
        data = tmp_path / "data.jsonl"
        data.write_text(json.dumps(ROW) + "\n")
        settings = settings_in(tmp_path)
        stored = store_requests(settings, data)
        with unit_of_work(database) as session:
            work = request_fit(session, base_name="model", stored=stored)
        assert (work.kind, work.queue, work.state) == ("fit_critic", "gpu", "queued")
        kept = settings.storage_dir / work.args["data_sha256"][:2] / work.args["data_sha256"]
        assert kept.read_bytes() == data.read_bytes()

    @pytest.mark.parametrize(
        ("base", "content", "error", "message"),
        [
            ("other", json.dumps(ROW), NotFound, "no base model is called 'other'"),
            ("model", json.dumps({**ROW, "label": 3}), InvalidTrainingFile, r"line 1, \$.label"),
            ("model", "", InvalidTrainingFile, "the file is empty"),
            ("model", None, InvalidRequest, "No such file"),
        ],
    )
    def test_bad_request_adds_nothing(
        self,
        database: Database,
        tmp_path: Path,
        base: str,
        content: str | None,
        error: type[TetherError],
        message: str,
    ) -> None:
        data = tmp_path / "data.jsonl"
        if content is not None:
            data.write_text(content)
        with pytest.raises(error, match=message), unit_of_work(database) as session:
            request_fit(session, base_name=base, stored=store_requests(settings_in(tmp_path), data))
        with read_only(database) as session:
            assert session.scalars(select(Work)).all() == []
