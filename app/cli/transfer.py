"""Files on their way to and from a server, with progress. A download goes on where it stopped, and is checked."""

import hashlib
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from app.cli.client import UPLOAD_TIMEOUT, Server, Unreachable
from app.cli.output import clean, err, show_size
from app.errors import InvalidRequest, TetherError

ATTEMPTS = 4
PAUSE_S = 0.5
ETAG = re.compile(r'"([0-9a-f]{64})"')


def upload(server: Server, path: Path, purpose: str) -> dict[str, Any]:
    """Send a local file and return the file object."""
    with path.open("rb") as file, _progress() as progress:
        task = progress.add_task(clean(path.name), total=path.stat().st_size)
        with progress.wrap_file(file, task_id=task) as counted:
            answer: dict[str, Any] = server.call(
                "POST",
                "files",
                files={"file": (path.name, counted, "application/octet-stream")},
                data={"purpose": purpose},
                timeout=UPLOAD_TIMEOUT,
            )
    return answer


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
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield progress
