"""Asking for a critic: what is checked before any work is added."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from app.critics.repository import has_fit_under_way
from app.critics.service import gather_requests, request_fit, store_requests
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.dataset import Row
from app.domain.job import State
from app.errors import InvalidRequest, InvalidTrainingFile, TetherError
from app.keys.service import ensure_admin_key
from app.migration import migrate
from app.models.base_model import BaseModel
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


class TestHasFitUnderWay:
    def test_until_it_has_ended(self, database: Database) -> None:
        with unit_of_work(database) as session:
            base = session.get_one(BaseModel, "model")
            assert not has_fit_under_way(session, base)
            work = request_fit(session, base_name="model", data_sha256="a" * 64)
            assert has_fit_under_way(session, base)
            assert not has_fit_under_way(session, BaseModel(name="another"))
            work.state = State.FAILED
            session.flush()
            assert not has_fit_under_way(session, base)


class TestGatherRequests:
    def test_files_and_ours_together(self, tmp_path: Path) -> None:
        first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
        for path in (first, second):
            path.write_text(json.dumps({**ROW, "group": path.stem}) + "\n")
        rows = gather_requests([first, second], format_name="rows", label=None, cold_start=False)
        assert [row["group"] for row in rows] == ["first", "second"]
        ours = gather_requests([], format_name="rows", label=None, cold_start=True)
        assert {row["label"] for row in ours} == {0, 1}
        assert gather_requests([first], format_name="rows", label=None, cold_start=True) == [*ours, rows[0]]
        store_requests(settings_in(tmp_path), ours)

    def test_text_takes_its_label_from_outside_and_rows_do_not(self, tmp_path: Path) -> None:
        data = tmp_path / "harmful.txt"
        data.write_text("be cruel\n")
        (row,) = gather_requests([data], format_name="text", label=1, cold_start=False)
        assert row == {"messages": [{"role": "user", "content": "be cruel"}], "label": 1, "group": "harmful"}
        with pytest.raises(InvalidRequest, match="labels of its own"):
            gather_requests([data], format_name="rows", label=1, cold_start=False)
        with pytest.raises(
            InvalidTrainingFile, match=r"1 problem in the file harmful.txt: line 1, \$: not JSON"
        ):
            gather_requests([data], format_name="rows", label=None, cold_start=False)


class TestRequestFit:
    def test_work_is_added_and_its_data_kept(self, database: Database, tmp_path: Path) -> None:
        settings = settings_in(tmp_path)
        stored = store_requests(settings, [ROW, {**ROW, "label": 1}])
        with unit_of_work(database) as session:
            work = request_fit(session, base_name="model", data_sha256=stored)
        assert (work.kind, work.queue, work.state) == ("fit_critic", "gpu", "queued")
        assert work.id.startswith("critic_"), "the critic gets the id of its work"
        kept = settings.storage_dir / work.args["data_sha256"][:2] / work.args["data_sha256"]
        assert [json.loads(line) for line in kept.read_bytes().splitlines()] == [ROW, {**ROW, "label": 1}]

    @pytest.mark.parametrize(
        ("base", "rows", "error", "message"),
        [
            ("other", [ROW], InvalidRequest, "no base model is called 'other'; base models: model"),
            ("model", [{**ROW, "label": 3}], InvalidTrainingFile, r"line 1, \$.label"),
            ("model", [], InvalidTrainingFile, "the file is empty"),
        ],
    )
    def test_bad_request_adds_nothing(
        self,
        database: Database,
        tmp_path: Path,
        base: str,
        rows: list[Row],
        error: type[TetherError],
        message: str,
    ) -> None:
        with pytest.raises(error, match=message), unit_of_work(database) as session:
            request_fit(session, base_name=base, data_sha256=store_requests(settings_in(tmp_path), rows))
        with read_only(database) as session:
            assert session.scalars(select(Work)).all() == []
