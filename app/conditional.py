"""Replies that are sent again only where they have changed: ETag and If-None-Match."""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from fastapi.responses import Response


def encode(body: Mapping[str, Any]) -> bytes:
    """Return an object as the bytes of a reply."""
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def etag_of(*parts: object) -> str:
    """Return the ETag of what these parts determine."""
    return f'"{hashlib.sha256(repr(parts).encode("utf-8")).hexdigest()[:32]}"'


def answer(
    etag: str, if_none_match: str | None, media_type: str, make: Callable[[], bytes], **headers: str
) -> Response:
    """Return the reply, or 304 without making it where the client has it already."""
    # A copy is kept by nobody but who asked, and is never used without asking again.
    headers = {"etag": etag, "cache-control": "private, no-cache", "vary": "authorization, cookie", **headers}
    known = [each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")]
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(make(), media_type=media_type, headers=headers)


class ReplyCache:
    """The replies that took long to make, by what determines them; the ones not asked for longest go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._replies: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """Return a reply that is kept."""
        with self._lock:
            if key in self._replies:
                self._replies.move_to_end(key)
            return self._replies.get(key)

    def put(self, key: str, reply: bytes) -> None:
        """Keep a reply, unless it alone is more than there is room for."""
        with self._lock:
            if key in self._replies or len(reply) > self._max_bytes:
                return
            self._replies[key] = reply
            self._bytes += len(reply)
            while self._bytes > self._max_bytes:
                _, gone = self._replies.popitem(last=False)
                self._bytes -= len(gone)
