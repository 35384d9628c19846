"""Giving stored bytes away: whole, in part, and never as whole when they are damaged."""

import hashlib
import io
from collections.abc import Callable, Iterator

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.testclient import TestClient

from app import storage
from app.downloads import find_range, send_stored
from app.errors import StorageUnavailable
from app.storage import Place

CONTENT = hashlib.shake_256(b"any").digest(9_000_000)  # More than one piece of a bucket.
SHA256 = hashlib.sha256(CONTENT).hexdigest()
Get = Callable[..., httpx.Response]


@pytest.fixture
def get(place: Place) -> Iterator[Get]:
    """A function that gets the stored bytes with some headers."""
    app = FastAPI()

    @app.get("/bytes")
    def endpoint(request: Request) -> Response:
        return send_stored(request, place, SHA256, media_type="text/plain", headers={"x-ours": "yes"})

    storage.store_stream(place, io.BytesIO(CONTENT))
    with TestClient(app) as client:
        yield lambda **headers: client.get(
            "/bytes", headers={name.replace("_", "-"): value for name, value in headers.items()}
        )


class TestSendStored:
    def test_whole(self, get: Get) -> None:
        reply = get()
        assert (reply.status_code, reply.content) == (200, CONTENT)
        assert reply.headers["etag"] == f'"{SHA256}"'
        assert reply.headers["content-length"] == str(len(CONTENT))
        assert reply.headers["accept-ranges"] == "bytes"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-ours"] == "yes"

    @pytest.mark.parametrize(
        ("asked", "start", "stop"),
        [
            ("bytes=0-9", 0, 10),
            ("bytes=8000000-", 8_000_000, 9_000_000),
            ("bytes=-5", 8_999_995, 9_000_000),
            ("bytes=10-99999999999", 10, 9_000_000),
        ],
    )
    def test_part(self, get: Get, asked: str, start: int, stop: int) -> None:
        reply = get(range=asked)
        assert (reply.status_code, reply.content) == (206, CONTENT[start:stop])
        assert reply.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"
        assert reply.headers["content-length"] == str(stop - start)

    def test_part_beyond_the_end_is_refused_with_the_size(self, get: Get) -> None:
        reply = get(range="bytes=9000000-")
        assert reply.status_code == 416
        assert str(len(CONTENT)) in reply.headers["content-range"]

    @pytest.mark.parametrize(("condition", "status"), [(f'"{SHA256}"', 206), ('"other"', 200)])
    def test_going_on_needs_the_same_bytes(self, get: Get, condition: str, status: int) -> None:
        assert get(range="bytes=5-", if_range=condition).status_code == status

    def test_missing_bytes_are_an_error_before_the_reply_begins(self, get: Get, place: Place) -> None:
        storage.discard(place, SHA256)
        with pytest.raises(StorageUnavailable, match="not in storage"):
            get()

    def test_damaged_object_is_never_given_whole(self, bucket: str) -> None:
        from obstore.store import S3Store

        from app.storage import s3

        S3Store.from_url(bucket).put(f"{SHA256[:2]}/{SHA256}", CONTENT[:-1] + b"?")
        given = bytearray()
        with pytest.raises(StorageUnavailable, match="damaged"):
            for piece in s3.read_whole(bucket, SHA256, len(CONTENT)):
                given += piece
        assert len(given) < len(CONTENT)


class TestFindRange:
    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            ("", None),
            ("bytes=-", None),
            ("bytes=0-1,3-4", None),
            ("rows=0-1", None),
            ("bytes=5-4", None),
            ("bytes=" + "9" * 30 + "-", None),
            ("bytes=0-0", (0, 1)),
            ("bytes=-200", (0, 100)),
            ("bytes=-0", (100, 100)),
            ("bytes=100-", (100, 100)),
            ("bytes=500-600", (100, 100)),
        ],
    )
    def test_one_range_or_none(self, header: str, expected: tuple[int, int] | None) -> None:
        assert find_range(header, 100) == expected

    def test_nothing_of_nothing(self) -> None:
        assert find_range("bytes=0-", 0) == (0, 0)
