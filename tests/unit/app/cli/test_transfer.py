"""Transfers that break off, are damaged, or find no room, over a real connection."""

import hashlib
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.cli import transfer
from app.cli.client import Unreachable, connect
from app.cli.transfer import download
from app.errors import InvalidRequest, TetherError

CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Host:
    """A server of one file that can be made to fail, and the requests that it got."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.etag: str | None = DIGEST
        self.breaks: list[int] = []
        """After how many bytes of its body each of the next replies with content ends."""
        self.ranges: list[str | None] = []
        self.url = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer as storage does: one range, for those who have the same bytes."""
        asked = request.headers.get("range")
        self.ranges.append(asked)
        start = 0
        if asked and request.headers.get("if-range") == f'"{self.etag}"':
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(self.content):
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("content-length", str(len(body)))
        if self.etag:
            request.send_header("etag", f'"{self.etag}"')
        request.end_headers()
        request.wfile.write(body[: self.breaks.pop(0)] if self.breaks else body)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(transfer, "PAUSE_S", 0.01)
    host = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        host.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield host
        finally:
            server.shutdown()
            thread.join()


def fetch(host: Host, target: Path) -> str | None:
    with connect(host.url, "key") as server:
        return download(server, ("files", "x", "content"), target)


def test_whole_download_is_checked_and_leaves_nothing_else(host: Host, tmp_path: Path) -> None:
    assert fetch(host, tmp_path / "file") == DIGEST
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_broken_download_is_taken_up_at_once(host: Host, tmp_path: Path) -> None:
    host.breaks = [300_000]
    assert fetch(host, tmp_path / "file") == DIGEST
    assert (tmp_path / "file").read_bytes() == CONTENT
    # The first request after the break learns which bytes the server has by now.
    assert host.ranges == [None, None, "bytes=300000-"]


def test_next_call_goes_on_where_the_last_one_gave_up(host: Host, tmp_path: Path) -> None:
    (tmp_path / f".{DIGEST}.part").write_bytes(CONTENT[:500_000])
    # Each attempt asks first for all, of which nothing is read, and then for the rest.
    host.breaks = [0, 1000] * transfer.ATTEMPTS
    with pytest.raises(Unreachable, match=r"5\d\d\.\d kB of file have arrived. Run the same command again"):
        fetch(host, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    kept = (tmp_path / f".{DIGEST}.part").stat().st_size
    assert kept == 500_000 + 1000 * transfer.ATTEMPTS
    host.breaks, host.ranges = [], []
    assert fetch(host, tmp_path / "file") == DIGEST
    assert host.ranges == [None, f"bytes={kept}-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_part_that_was_whole_already_is_only_checked(host: Host, tmp_path: Path) -> None:
    (tmp_path / f".{DIGEST}.part").write_bytes(CONTENT)
    assert fetch(host, tmp_path / "file") == DIGEST
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_damage_is_found_and_not_kept(host: Host, tmp_path: Path) -> None:
    host.content = CONTENT[:-1] + b"?"
    with pytest.raises(TetherError, match="not what the server has"):
        fetch(host, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_what_has_no_digest_is_whole_or_not_there(host: Host, tmp_path: Path) -> None:
    host.etag = None
    host.breaks = [1000] * transfer.ATTEMPTS
    with pytest.raises(Unreachable):
        fetch(host, tmp_path / "file")
    assert not list(tmp_path.iterdir())
    assert fetch(host, tmp_path / "file") is None
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_server_that_is_away_is_told_at_once(host: Host, tmp_path: Path) -> None:
    host.url = "http://127.0.0.1:1"
    with pytest.raises(Unreachable, match="cannot be reached"):
        fetch(host, tmp_path / "file")


def test_no_file_is_overwritten(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidRequest, match="is there already"):
        fetch(host, tmp_path / "file")
    with pytest.raises(InvalidRequest, match="there is no folder"):
        fetch(host, tmp_path / "none" / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert host.ranges == []


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let this process write no file beyond a size, which fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_is_said_and_what_arrived_counts(host: Host, tmp_path: Path) -> None:
    with files_of_at_most(400_000), pytest.raises(TetherError, match=r"cannot be written .* free space"):
        fetch(host, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    kept = (tmp_path / f".{DIGEST}.part").stat().st_size
    assert 0 < kept <= 400_000
    assert fetch(host, tmp_path / "file") == DIGEST
    assert host.ranges[-1] == f"bytes={kept}-"
