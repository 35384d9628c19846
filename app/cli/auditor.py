"""Fetching a server's logs for an auditor."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from app.cli.client import Refused, Server, connect
from app.domain.installation_log import Checkpoint
from app.domain.log_audit import Audited, AuditFailed, audit_log
from app.domain.trust import Trust, open_checkpoint, parse_trust
from app.errors import InvalidRequest, TetherError

MAX_TILE_BYTES = 256 * (2 + 65_535)
MAX_LOGS = 1000


class LogRejected(TetherError):
    """A log is not what it should be."""

    code = "log_rejected"


def audit_server(url: str, key: str | None, policy: Path, since: Path | None) -> list[Audited]:
    """Audit every log of a server, the one from before a fork first. Raises LogRejected at the first fault.

    Raises InvalidRequest for a policy or a kept checkpoint that cannot be used.
    """
    trust = _read_policy(policy)
    kept = None if since is None else _read_checkpoint(since, trust)
    found: list[Audited] = []
    with connect(url, key) as server:
        for number, origin in _list_logs(server):
            held = kept if kept is not None and kept.origin == origin else None
            try:
                found.append(audit_log(partial(_fetch, server, str(number)), trust, held))
            except AuditFailed as error:
                raise LogRejected(f"the log {number} of {server.url}: {error}") from error
    if kept is not None and kept.origin not in [each.checkpoint.origin for each in found]:
        raise LogRejected(
            f"{url} has no log {kept.origin} any more, of which a checkpoint of size {kept.size} was kept"
        )
    return found


def _list_logs(server: Server) -> Iterator[tuple[int, str]]:
    """Yield number and origin of each log up to the present one; one that was forked before it was signed is left out."""
    present = _origin_of(_fetch(server, "checkpoint"))
    for number in range(1, MAX_LOGS + 1):
        try:
            origin = _origin_of(_fetch(server, str(number), "checkpoint"))
        except Refused as refused:
            if refused.status != 404:
                raise
            continue
        yield number, origin
        if origin == present:
            return
    raise LogRejected(f"{server.url} does not give the log {present}, of which it gives a checkpoint")


def _origin_of(note: bytes) -> str:
    return note.decode("utf-8", "replace").partition("\n")[0]


def _fetch(server: Server, *path: str) -> bytes:
    parts = [part for each in path for part in each.split("/")]
    body = bytearray()
    with server.stream("log", *parts) as reply:
        for piece in reply.iter_bytes():
            body += piece
            if len(body) > MAX_TILE_BYTES:
                raise LogRejected(f"{server.url} answers more for {path[-1]} than a tile can have")
    return bytes(body)


def _read_policy(path: Path) -> Trust:
    try:
        return parse_trust(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidRequest(f"{path}: {error}", param="policy") from error


def _read_checkpoint(path: Path, trust: Trust) -> Checkpoint:
    try:
        return open_checkpoint(path.read_bytes(), trust)[0]
    except ValueError as error:
        raise InvalidRequest(f"{path}: {error}", param="since") from error
