"""Reading lines in bounded memory."""

import io

import pytest

from app.domain.dataset import MAX_LINE_BYTES, read_lines

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
