"""Asking for a critic: what is checked before any work is added."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from app.critics.importers import Source
from app.critics.repository import has_fit_under_way
from app.critics.service import describe_rows, gather_requests, request_fit, store_requests
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.conversion import Row
from app.domain.job import State
from app.errors import InvalidRequest, InvalidTrainingFile, TetherError
from app.keys.service import DEFAULT_PROJECT, ensure_admin_key
from app.migration import migrate
from app.models.base_model import BaseModel
from app.models.work import Work
from tests.support import add_base_model, collect, settings_in

ROW = {"messages": [{"role": "user", "content": "hello"}], "label": 0, "group": "greetings"}


@pytest.fixture
def database(sqlite_url: str, tmp_path: Path) -> Iterator[Database]:
    """A database with a base model."""
    database = Database(open_engine(sqlite_url), collect([]))
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
        sources = [Source(path, "rows", None) for path in (first, second)]
        rows = gather_requests(sources, cold_start=False)
        assert [row["group"] for row in rows] == ["first", "second"]
        ours = gather_requests([], cold_start=True)
        assert {row["label"] for row in ours} == {0, 1}
        assert gather_requests(sources[:1], cold_start=True) == [*ours, rows[0]]
        store_requests(settings_in(tmp_path), ours)

    def test_text_takes_its_label_from_outside_and_rows_do_not(self, tmp_path: Path) -> None:
        data = tmp_path / "harmful.txt"
        data.write_text("be cruel\n")
        (row,) = gather_requests([Source(data, "text", 1)], cold_start=False)
        assert row == {"messages": [{"role": "user", "content": "be cruel"}], "label": 1, "group": "harmful"}
        with pytest.raises(InvalidRequest, match="labels of its own"):
            gather_requests([Source(data, "rows", 1)], cold_start=False)
        with pytest.raises(
            InvalidTrainingFile, match=r"1 problem in the file harmful.txt: line 1, \$: not JSON"
        ):
            gather_requests([Source(data, "rows", None)], cold_start=False)

    def test_sets_of_different_formats_make_one(self, tmp_path: Path) -> None:
        files = {
            "advbench": "goal,target\nDo a thing,Sure\n",
            "xstest": "prompt,type\nOne?,homonyms\n",
            "rows": json.dumps(ROW),
        }
        sources = []
        for name, text in files.items():
            (tmp_path / name).write_text(text)
            sources.append(Source(tmp_path / name, name, None))
        rows = gather_requests(sources, cold_start=False)
        assert [(row["group"], row["label"]) for row in rows] == [
            ("advbench", 1), ("xstest homonyms", 0), ("greetings", 0),
        ]  # fmt: skip

    @pytest.mark.parametrize("name", ["rows", "advbench"])
    def test_a_file_that_is_not_there(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InvalidRequest, match=r"none\.csv cannot be read: No such file"):
            gather_requests([Source(tmp_path / "none.csv", name, None)], cold_start=False)


def test_what_was_read_is_counted() -> None:
    reply = {**ROW, "messages": [*ROW["messages"], {"role": "assistant", "content": "hi"}]}
    harmful = {**ROW, "label": 1}
    assert describe_rows([ROW, harmful, ROW]) == "3 requests read: 1 harmful, 2 not"
    assert describe_rows([ROW, reply]) == "1 requests read: 0 harmful, 1 not; 1 replies: 0 harmful, 1 not"


class TestRequestFit:
    def test_work_is_added_and_its_data_kept(self, database: Database, tmp_path: Path) -> None:
        settings = settings_in(tmp_path)
        stored = store_requests(settings, [ROW, {**ROW, "label": 1}])
        with unit_of_work(database) as session:
            work = request_fit(session, base_name="model", data_sha256=stored, pooling=3)
        assert work.args["pooling"] == 3
        assert (work.kind, work.queue, work.state) == ("fit_critic", "gpu", "queued")
        assert work.id.startswith("critic_"), "the critic gets the id of its work"
        kept = settings.storage_dir / work.args["data_sha256"][:2] / work.args["data_sha256"]
        assert [json.loads(line) for line in kept.read_bytes().splitlines()] == [ROW, {**ROW, "label": 1}]

    def test_no_server_need_have_run_before(self, tmp_path: Path) -> None:
        database = Database(open_engine(f"sqlite:///{tmp_path}/tether.db"), collect([]))
        migrate(database.engine)
        add_base_model(database, "model", tmp_path / "model")
        for _ in range(2):
            with unit_of_work(database) as session:
                work = request_fit(session, base_name="model", data_sha256="a" * 64)
            assert work.project_id == DEFAULT_PROJECT
        database.engine.dispose()

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
