"""Reading lines in bounded memory, and what becomes of bytes that were stored for nothing."""

import io
from pathlib import Path

import pytest

from app.database import Database, open_engine, unit_of_work
from app.domain.dataset import MAX_LINE_BYTES, read_lines
from app.errors import QuotaExceeded
from app.files.service import DATA, create_file, remove_deleted_bytes
from app.keys.service import DEFAULT_PROJECT, ensure_project
from app.models.base import Base
from app.settings import Settings
from tests.support import collect, settings_in

LONGEST = b"x" * MAX_LINE_BYTES


class TestReadLines:
    @pytest.mark.parametrize(
        ("content", "lines"),
        [
            (b"", []),
            (b"a", [b"a"]),
            (b"a\n", [b"a"]),
            (b"a\r\nb\n", [b"a", b"b"]),
            (b"a\n\nb", [b"a", b"", b"b"]),
            (b"a\n\n", [b"a", b""]),
            (b"a\xe2\x80\xa8b\x0cc", [b"a\xe2\x80\xa8b\x0cc"]),  # Only a newline ends a line.
        ],
    )
    def test_lines_without_their_ends(self, content: bytes, lines: list[bytes]) -> None:
        assert list(read_lines(io.BytesIO(content))) == lines

    @pytest.mark.parametrize("end", [b"\n", b"\r\n"])
    def test_rows_after_a_longest_line_are_read(self, end: bytes) -> None:
        # A row that ended the file early would be checked and trained without the ones behind it.
        assert list(read_lines(io.BytesIO(LONGEST + end + b"next" + end))) == [LONGEST, b"next"]

    def test_line_beyond_the_limit_is_cut_and_ends_the_file(self) -> None:
        read = list(read_lines(io.BytesIO(LONGEST * 3 + b"\nnext\n")))
        assert len(read) == 1
        assert MAX_LINE_BYTES < len(read[0]) < MAX_LINE_BYTES + 10


class Overtaken(io.BytesIO):
    """An upload that is overtaken by another one of the same project while it is being stored."""

    def __init__(self, content: bytes, database: Database, settings: Settings) -> None:
        super().__init__(content)
        self._place = database, settings

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() == 0:
            other = io.BytesIO(b"the other")
            create_file(
                *self._place, project_id=DEFAULT_PROJECT, filename="other", purpose=DATA, stream=other
            )
        return super().read(size)


class TestCreateFile:
    def test_upload_that_finds_no_room_after_it_was_stored_leaves_no_bytes(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path, project_storage_bytes=12, deletion_grace_s=0)
        engine = open_engine(f"sqlite:///{tmp_path / 'tether.db'}")
        Base.metadata.create_all(engine)
        database = Database(engine, collect([]))
        with unit_of_work(database) as session:
            ensure_project(session)
        stream = Overtaken(b"ten bytes.", database, settings)
        with pytest.raises(QuotaExceeded):
            create_file(
                database, settings, project_id=DEFAULT_PROJECT, filename="late", purpose=DATA, stream=stream
            )
        remove_deleted_bytes(database, settings)
        kept = [path.read_bytes() for path in settings.storage.rglob("*") if path.is_file()]
        assert kept == [b"the other"]
        engine.dispose()
