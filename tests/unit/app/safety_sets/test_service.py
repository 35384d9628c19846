"""Safety sets from local files, and the anchors that every base model gets."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.base_models.service import register_base_model
from app.database import Database, open_engine, unit_of_work
from app.domain.dataset import read_lines
from app.errors import InvalidTrainingFile
from app.safety_sets.repository import get_newest_set, list_sets
from app.safety_sets.service import CHECKS, GENERIC_ANCHORS, Rows, add_missing_set, add_set, store_rows
from app.settings import Settings
from app.storage import read_checked
from tests.support import collect, settings_in, write_model_folder


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    """A database without anything in it."""
    database = Database(open_engine(sqlite_url), collect([]))
    yield database
    database.engine.dispose()


def store_generic(settings: Settings) -> Rows:
    """Store the anchors that come with Tether."""
    with GENERIC_ANCHORS.open("rb") as file:
        return store_rows(settings, "anchors", file)


class TestStoreRows:
    def test_good_file_is_kept(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path)
        rows = store_generic(settings)
        assert rows.number == 96
        assert read_checked(settings.storage, rows.sha256) == GENERIC_ANCHORS.read_bytes()

    def test_bad_file_is_not(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path / "home")
        data = io.BytesIO(b'{"messages": 1}\n{}\n')
        for kind in CHECKS:
            with pytest.raises(InvalidTrainingFile, match=r"2 problems in the set of kind .* line 2, \$"):
                store_rows(settings, kind, data)
            data.seek(0)
        assert not settings.storage_dir.exists()


class TestAddMissingSet:
    def test_set_of_the_operator_is_not_pushed_aside(self, database: Database, tmp_path: Path) -> None:
        generic = store_generic(settings_in(tmp_path))
        with unit_of_work(database) as session:
            base = register_base_model(session, "model", write_model_folder(tmp_path / "model"))
            session.flush()
            first = add_missing_set(session, base, "anchors", generic)
            assert first is not None
            assert add_missing_set(session, base, "anchors", generic) is None
            own = add_set(session, base, "anchors", generic._replace(number=8))
            assert add_missing_set(session, base, "anchors", generic) is None
            assert get_newest_set(session, base, "anchors") is own
            assert list_sets(session, kinds=("anchors",)) == [own, first]
            assert own.commitment_key != first.commitment_key
            assert get_newest_set(session, base, "harmful") is None


class TestGenericAnchors:
    def test_they_are_many_different_short_requests(self) -> None:
        with GENERIC_ANCHORS.open("rb") as file:
            rows = [json.loads(line) for line in read_lines(file)]
        requests = [row["messages"][0]["content"] for row in rows]
        assert all([each["role"] for each in row["messages"]] == ["user"] for row in rows)
        assert len(set(requests)) == len(requests) == 96
        assert all(len(request) < 120 for request in requests)
        # No way of beginning stands for all: a model could keep declining that one and nothing else.
        beginnings = Counter(" ".join(request.lower().split()[:2]) for request in requests)
        assert len(beginnings) >= 30
        assert beginnings.most_common(1)[0][1] <= 12
