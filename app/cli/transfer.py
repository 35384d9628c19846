"""Files on their way to and from a server, with progress. A download goes on where it stopped, and is checked."""

import contextlib
import hashlib
import io
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import httpx
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from app.cli.client import UPLOAD_TIMEOUT, Refused, Server, Unreachable
from app.cli.output import can_draw, clean, err, show_size
from app.errors import InvalidRequest, TetherError

ATTEMPTS = 4
PAUSE_S = 0.5
PART_BYTES = 16 * 1024 * 1024
"""A file beyond this goes in parts of this size; the wire's largest has 64 MiB."""
ETAG = re.compile(r'"([0-9a-f]{64})"')


def upload(server: Server, path: Path, purpose: str) -> dict[str, Any]:
    """Send a local file, a large one in parts, and return the file object."""
    size = path.stat().st_size
    with path.open("rb") as file, _progress() as progress:
        task = progress.add_task(clean(path.name), total=size)
        if size > PART_BYTES:
            return _upload_parts(server, path.name, size, purpose, file, progress, task)
        with progress.wrap_file(file, task_id=task) as counted:
            answer: dict[str, Any] = server.call(
                "POST",
                "files",
                files={"file": (path.name, counted, "application/octet-stream")},
                data={"purpose": purpose},
                timeout=UPLOAD_TIMEOUT,
            )
    return answer


def _upload_parts(
    server: Server, name: str, size: int, purpose: str, file: BinaryIO, progress: Progress, task: Any
) -> dict[str, Any]:
    """Send a file in parts, each again where its connection breaks. The server compares the MD5 of the whole."""
    announced = {"filename": name, "bytes": size, "purpose": purpose, "mime_type": "application/jsonl"}
    upload_id = server.create("uploads", body=announced)["id"]
    path = ("uploads", upload_id)
    md5 = hashlib.md5(usedforsecurity=False)
    part_ids: list[str] = []
    try:
        while piece := file.read(PART_BYTES):
            md5.update(piece)
            send = partial(_send_part, server, (*path, "parts"), piece, progress, task)
            part_ids.append(_try_again(send)["id"])
        whole = {"part_ids": part_ids, "md5": md5.hexdigest()}
        complete = partial(server.call, "POST", *path, "complete", json=whole, timeout=UPLOAD_TIMEOUT)
        made: dict[str, Any] = _try_again(complete)["file"]
    except BaseException:
        # What it has taken of the project's storage comes back sooner; after an hour it would by itself.
        with contextlib.suppress(TetherError):
            server.call("POST", *path, "cancel")
        raise
    return made


def _send_part(
    server: Server, path: tuple[str, ...], piece: bytes, progress: Progress, task: Any
) -> dict[str, Any]:
    before = progress.tasks[task].completed
    try:
        with progress.wrap_file(io.BytesIO(piece), task_id=task) as counted:
            return dict(server.call("POST", *path, files={"data": ("part", counted)}, timeout=UPLOAD_TIMEOUT))
    except TetherError:
        progress.update(task, completed=before)
        raise


def _try_again(send: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a request is answered that may be sent again: the same part, the same completion."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return send()
        except (Unreachable, Refused) as error:
            if isinstance(error, Refused) and error.status < 500 and error.status != 429:
                raise
            time.sleep(PAUSE_S * 2**attempt)
    return send()


def download(server: Server, path: tuple[str, ...], target: Path, **query: str) -> str | None:
    """Write what a path answers to a new file. Return the SHA-256 that the server named and the bytes have.

    What has no such digest is made anew by each request: None is returned, and nothing is kept of half of it.
    A download that breaks off is taken up again, now and by the next call. Raises InvalidRequest where the file is
    there already, and TetherError where it cannot be had or kept.
    """
    if target.exists():
        raise InvalidRequest(f"{target} is there already; name another file with --out, or move it away")
    if not target.parent.is_dir():
        raise InvalidRequest(f"there is no folder {target.parent}; make it, or name another file with --out")
    with _progress() as progress:
        task = progress.add_task(clean(target.name), total=None)
        for attempt in range(ATTEMPTS):
            try:
                return _receive(server, path, query, target, progress, task)
            except Unreachable as error:
                arrived = progress.tasks[task].completed
                if not arrived:
                    raise
                if attempt == ATTEMPTS - 1:
                    raise Unreachable(
                        f"{error.message}; {show_size(arrived)} of {target.name} have arrived. Run the same command again:"
                        " what is kept of it is not fetched twice"
                    ) from error
                time.sleep(PAUSE_S * 2**attempt)
            except OSError as error:
                raise TetherError(
                    f"{target} cannot be written ({error.strerror}); free space or mend the folder, then run the same"
                    " command again: what is kept of it is not fetched twice"
                ) from error
    raise AssertionError("the last attempt returns or raises")


def _receive(
    server: Server, path: tuple[str, ...], query: dict[str, str], target: Path, progress: Progress, task: Any
) -> str | None:
    with server.stream(*path, params=query) as reply:
        sha256 = _digest_of(reply)
        part = target.with_name(f".{sha256 or uuid.uuid4().hex}.part")
        have = part.stat().st_size if part.exists() else 0
        if not have:
            progress.update(task, total=_length_of(reply), completed=0)
            _save(reply, part, "wb", progress, task, keep=sha256 is not None)
    if have:
        _take_up(server, path, part, have, progress, task)
    if sha256 is not None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            part.unlink()
            raise TetherError(
                f"what arrived is not what the server has (SHA-256 {found[:12]}… instead of {sha256[:12]}…); nothing"
                " was kept. Run the command again"
            )
    part.replace(target)
    return sha256


def _take_up(
    server: Server, path: tuple[str, ...], part: Path, have: int, progress: Progress, task: Any
) -> None:
    """Fetch what is missing of a part; all of it where the server has other bytes by now."""
    sha256 = part.name[1:65]
    with server.stream(
        *path, headers={"range": f"bytes={have}-", "if-range": f'"{sha256}"'}, accept=(416,)
    ) as reply:
        if reply.status_code == 416:
            # Nothing is missing; the digest tells whether it is right.
            return
        going_on = reply.status_code == 206 and _digest_of(reply) == sha256
        start = have if going_on else 0
        length = _length_of(reply)
        progress.update(task, total=None if length is None else start + length, completed=start)
        _save(reply, part, "ab" if going_on else "wb", progress, task, keep=True)


def _save(reply: httpx.Response, part: Path, mode: str, progress: Progress, task: Any, *, keep: bool) -> None:
    try:
        with part.open(mode) as file:
            for chunk in reply.iter_raw():
                file.write(chunk)
                progress.advance(task, len(chunk))
    except BaseException:
        if not keep:
            part.unlink(missing_ok=True)
        raise


def _digest_of(reply: httpx.Response) -> str | None:
    match = ETAG.fullmatch(reply.headers.get("etag", ""))
    return match[1] if match else None


def _length_of(reply: httpx.Response) -> int | None:
    length = reply.headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


@contextmanager
def _progress() -> Iterator[Progress]:
    """Give a bar for bytes, where there is a terminal to show it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not can_draw(err)) as progress:
        yield progress
