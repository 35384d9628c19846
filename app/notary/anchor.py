"""The anchor: the newest signed checkpoint goes to a URL of the operator's, outside of what he himself can change.

It is a process of its own and never the notary: a receiver that hangs keeps nobody from signing. Any number may run;
each attempt is claimed by the database's clock, so that two of them do not send the same.
"""

import asyncio
import json
import logging
import threading
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.database import Database, read_only, unit_of_work
from app.models.base import now_ms, utc_now
from app.models.installation_log import Anchor, InstallationLog, LogCheckpoint
from app.notary import repository
from app.settings import Settings
from app.webhooks.delivery import Outgoing, attempt, pause_after
from app.webhooks.egress import Resolve, resolve_by_system
from app.webhooks.signing import read_secret

log = logging.getLogger(__name__)

WEBHOOK = "webhook"
POLL_S = 1.0
LONGEST_PAUSE_MS = 10 * 60 * 1000
"""A receiver that is back should not wait longer for what proves the most when it is new."""
LEASE_MARGIN_S = 30.0
"""What an attempt may need beside the receiver's answer. Whoever dies while sending delays the next attempt by no more."""
LATE_AFTER_S = 600.0
"""A checkpoint that is outside by then is nothing to worry about; with a longer interval, twice that."""


class Standing(NamedTuple):
    """How far what was signed is outside."""

    size: int
    """Of the newest checkpoint of the present log that the receiver took."""
    sent_at: datetime | None
    lag_s: float
    """How long the oldest checkpoint that is not outside, nor is a later one, has been signed; 0 where none is."""
    error: str | None

    @property
    def is_known(self) -> bool:
        """Whether anything was ever tried: who looks may have another process's settings than who sends."""
        return self.sent_at is not None or self.error is not None

    def is_late(self, settings: Settings) -> bool:
        """Say whether somebody should look why."""
        return self.lag_s > max(LATE_AFTER_S, 2 * settings.anchor_interval_s)


def run_anchor(
    database: Database, settings: Settings, stop: threading.Event, resolve: Resolve = resolve_by_system
) -> None:
    """Send what is signed until told to stop; without a URL there is nothing to do."""
    while settings.anchor_url and not stop.wait(POLL_S):
        try:
            send_newest(database, settings, resolve)
        except SQLAlchemyError as error:
            log.warning("the database cannot be used (%s); trying again", type(error).__name__)
        except Exception:
            log.exception("the checkpoint could not be sent; trying again")


def send_newest(database: Database, settings: Settings, resolve: Resolve = resolve_by_system) -> bool:
    """Send the newest checkpoint where it is due; say whether it was sent and taken."""
    with read_only(database) as session:
        if find_unsent(session) is None:
            return False
    with unit_of_work(database) as session:
        checkpoint = find_unsent(session) if _claim(session, settings) else None
        if checkpoint is None:
            return False
        outgoing = _address(session, settings, checkpoint)
    outcome = asyncio.run(attempt(outgoing, settings, resolve))
    with unit_of_work(database) as session:
        _record(session, settings, checkpoint, outcome.error)
    if outcome.error is not None:
        log.warning("the checkpoint of size %d is not outside: %s", checkpoint.size, outcome.error)
    return outcome.error is None


def find_unsent(session: Session) -> LogCheckpoint | None:
    """Return the newest checkpoint unless the receiver has it."""
    present = repository.get_log(session)
    newest = repository.get_checkpoint(session, present.number) if present else None
    anchor = session.get_one(Anchor, WEBHOOK)
    has_it = newest is None or (anchor.log == newest.log and anchor.size >= newest.size)
    return None if has_it else newest


def find_standing(session: Session) -> Standing:
    """Return how far what was signed is outside."""
    anchor, present = session.get_one(Anchor, WEBHOOK), repository.get_log(session)
    size = anchor.size if present is not None and anchor.log == present.number else 0
    oldest = None
    if present is not None:
        oldest = session.scalars(
            select(LogCheckpoint.signed_at)
            .where(LogCheckpoint.log == present.number, LogCheckpoint.size > size)
            .order_by(LogCheckpoint.size)
            .limit(1)
        ).one_or_none()
    lag_s = 0.0 if oldest is None else max(0.0, (utc_now() - oldest).total_seconds())
    return Standing(size, anchor.sent_at, lag_s, anchor.error)


def _claim(session: Session, settings: Settings) -> bool:
    """Take the next attempt for the time that it may need; False where it is not due, or somebody else has it."""
    lease_ms = int((settings.webhook_timeout_s + LEASE_MARGIN_S) * 1000)
    taken = session.execute(
        update(Anchor)
        .where(Anchor.name == WEBHOOK, Anchor.next_at_ms <= now_ms())
        .values(next_at_ms=now_ms() + lease_ms)
        .returning(Anchor.name)
    ).one_or_none()
    return taken is not None


def _address(session: Session, settings: Settings, checkpoint: LogCheckpoint) -> Outgoing:
    origin = session.get_one(InstallationLog, checkpoint.log).origin
    body = {
        "type": "log.checkpoint",
        "data": {
            "origin": origin,
            "size": checkpoint.size,
            "root": checkpoint.root,
            "checkpoint": checkpoint.note,
        },
    }
    secret = settings.anchor_secret
    keys = () if secret is None else (read_secret(secret.get_secret_value()),)
    # The same checkpoint has the same id, so that a receiver knows one that it has.
    event_id = f"checkpoint_{checkpoint.log}_{checkpoint.size}"
    return Outgoing(settings.anchor_url, keys, event_id, json.dumps(body).encode())


def _record(session: Session, settings: Settings, checkpoint: LogCheckpoint, error: str | None) -> None:
    anchor = session.get_one(Anchor, WEBHOOK, with_for_update=True)
    now = session.scalars(select(now_ms())).one()
    pause_ms = int(settings.anchor_interval_s * 1000)
    anchor.error = error
    if error is None:
        anchor.log, anchor.size, anchor.sent_at = checkpoint.log, checkpoint.size, utc_now()
        anchor.failing_since_ms = None
    else:
        anchor.failing_since_ms = anchor.failing_since_ms or now
        pause_ms = max(pause_ms, min(pause_after(now - anchor.failing_since_ms), LONGEST_PAUSE_MS))
    anchor.next_at_ms = now + pause_ms
