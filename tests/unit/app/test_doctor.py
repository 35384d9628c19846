"""What the doctor says is missing is missing."""

import io
from pathlib import Path

import pytest
from sqlalchemy import event

from app import doctor, storage
from app.database import Database, open_engine, unit_of_work
from app.files.service import add_file
from app.keys.service import DEFAULT_PROJECT
from app.serve import prepare
from app.settings import Settings
from tests.support import settings_in


def add_bytes(database: Database, settings: Settings, content: bytes) -> storage.Stored:
    stored = storage.store_stream(settings.storage, io.BytesIO(content))
    with unit_of_work(database) as session:
        add_file(session, project_id=DEFAULT_PROJECT, filename="a", purpose="fine-tune", stored=stored)
    return stored


@pytest.mark.parametrize("is_lost", [False, True])
def test_bytes_that_come_while_the_doctor_looks_are_not_missing(tmp_path: Path, is_lost: bool) -> None:
    settings = settings_in(tmp_path)
    prepare(settings)
    database = Database(open_engine(settings.database_url), lambda _: None)

    def upload(*_: object) -> None:
        stored = add_bytes(database, settings, b"a moment later")
        if is_lost:
            storage.discard(settings.storage, stored.sha256)

    # The storage has been listed when the database is asked first.
    event.listen(database.engine, "before_cursor_execute", upload, once=True)
    found = {each.what: each for each in doctor._stored_bytes(database, settings)}
    finding = found["bytes that rows refer to"]
    assert (finding.todo is not None) == is_lost
    assert finding.found.startswith("1 missing" if is_lost else "all")
    database.engine.dispose()
