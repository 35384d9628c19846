"""Giving stored bytes to a client: from a folder as a file, from a bucket as a stream."""

import re
from collections.abc import Mapping
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from app.storage import Place, find_stored

RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def send_stored(
    request: Request, place: Place, sha256: str, *, media_type: str, headers: Mapping[str, str]
) -> Response:
    """Return the response that carries stored bytes; the digest is their ETag.

    Raises StorageUnavailable where they are missing. Damage in a bucket is found on the way: the reply then
    breaks off before its end, so that no client takes it for whole.
    """
    headers = {**headers, "etag": f'"{sha256}"', "x-content-type-options": "nosniff"}
    if isinstance(place, Path):
        return FileResponse(find_stored(place, sha256), media_type=media_type, headers=headers)
    from app.storage import s3

    size = s3.size_of(place, sha256)
    headers["accept-ranges"] = "bytes"
    # A client that goes on with other bytes than it began with must get the whole.
    same = request.headers.get("if-range", headers["etag"]) == headers["etag"]
    part = find_range(request.headers.get("range", ""), size) if same else None
    if part is None:
        headers["content-length"] = str(size)
        whole = s3.read_whole(place, sha256, size)
        return StreamingResponse(whole, media_type=media_type, headers=headers)
    start, stop = part
    if start >= stop:
        return Response(status_code=416, headers={**headers, "content-range": f"bytes */{size}"})
    headers |= {"content-range": f"bytes {start}-{stop - 1}/{size}", "content-length": str(stop - start)}
    pieces = s3.read_range(place, sha256, start, stop)
    return StreamingResponse(pieces, 206, media_type=media_type, headers=headers)


def find_range(header: str, size: int) -> tuple[int, int] | None:
    """Return start and stop of a request for one range, equal where it lies outside; None for anything else.

    Several ranges at once are answered with the whole, which is allowed.
    """
    match = RANGE.fullmatch(header.strip())
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    start = int(first)
    stop = min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return None
    return min(start, size), max(stop, min(start, size))
