"""Noting in the log who downloads which weights, before the first byte leaves."""

from app.database import Database, read_only, unit_of_work
from app.notary import repository

WINDOW_MS = 3600 * 1000
"""A download that comes in a thousand pieces is told once in this time, and so is one that is repeated."""


def note_download(database: Database, *, key_id: str, subject: str, sha256: str) -> None:
    """Note that a key downloads an artefact of a job or checkpoint, unless that was noted just now.

    Whatever keeps it from being noted keeps the weights from leaving.
    """
    with read_only(database) as session:
        if not repository.is_download_due(session, key_id, sha256, WINDOW_MS):
            return
    with unit_of_work(database) as session:
        if repository.take_download(session, key_id, sha256, WINDOW_MS):
            repository.add_event(session, "weights.downloaded", actor=key_id, subject=subject, sha256=sha256)
