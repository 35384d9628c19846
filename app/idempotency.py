"""Requests that are sent again: by a client that says so, and by one that does not.

The openai client sends a request again after a timeout, without an `Idempotency-Key`; it only counts its retries. Without
this a job whose first reply was lost would be trained, and paid for, twice.

A retry may also overtake its original, which waits in this or in another process for a body, a thread or a lock. Such an
original is known by its age: the server had begun with it before the retry was answered, as it has with no request that
somebody sends because of that answer. One that was not even read yet is known by its client, which has left.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from pydantic import BaseModel
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.database import Database, read_only, unit_of_work
from app.dependencies import CallerDep
from app.domain.ledger import digest_of
from app.errors import ClientGone, Conflict
from app.models.base import new_id, now_ms, utc_now
from app.models.reply import Reply
from app.models.tenancy import ApiKey

KEPT = timedelta(hours=24)
RETRIED = timedelta(minutes=10)
"""The openai client waits ten minutes for a reply before it sends a request again."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One sending of a request: by which key, to which route, and what it says about earlier ones."""

    api_key_id: str
    route: str
    idempotency_key: str | None
    retries: int
    received: float
    """When the server began with it, by this process's monotonic clock."""


async def get_attempt(
    request: Request,
    caller: CallerDep,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    x_stainless_retry_count: Annotated[int, Header(ge=0)] = 0,
) -> Attempt:
    """Return what the headers of a request say. Raises ClientGone where nobody waits for the reply any more."""
    if await request.is_disconnected():
        raise ClientGone("the client left before its request was begun with; nothing was done")
    received: float = request.state.received
    return Attempt(caller.key_id, request.url.path, idempotency_key, x_stainless_retry_count, received)


AttemptDep = Annotated[Attempt, Depends(get_attempt)]


def once(
    session: Session, attempt: Attempt, body: BaseModel, create: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Do what a request asks for, or return the reply that it got before.

    Raises Conflict where its `Idempotency-Key` came with another body within a day.
    """
    # Whoever uses the same API key waits here until this transaction has ended, so that a request that comes while its
    # first sending is still being worked on sees what came of it. SQLite has one writer at a time in any case.
    session.execute(select(ApiKey.id).where(ApiKey.id == attempt.api_key_id).with_for_update(key_share=True))
    digest = digest_of(body.model_dump(mode="json"))
    earlier = _find(session, attempt, digest)
    if earlier is not None:
        if earlier.body_sha256 != digest:
            raise Conflict(
                "the Idempotency-Key was used within the last 24 hours for a request with another body; send a new key"
                " for a new request",
                code="idempotency_key_reused",
            )
        return earlier.reply
    reply = create()
    is_alone = attempt.retries > 0 and attempt.idempotency_key is None
    session.add(
        Reply(
            id=new_id("reply_"),
            api_key_id=attempt.api_key_id,
            route=attempt.route,
            idempotency_key=attempt.idempotency_key,
            body_sha256=digest,
            reply=reply,
            created_at=utc_now(),
            awaits_original_since_ms=now_ms() if is_alone else None,
        )
    )
    return reply


class _NotDoneYet(Exception):
    """Nobody has sent this request before."""


def find_reply(database: Database, attempt: Attempt, body: BaseModel) -> dict[str, Any] | None:
    """Return the reply that a request got before, if any, for work that is too long for one transaction.

    `once` decides again in the transaction that finishes the work. Raises as it does.
    """
    try:
        with unit_of_work(database) as session:
            return once(session, attempt, body, _refuse_to_begin)
    except _NotDoneYet:
        return None


def _refuse_to_begin() -> dict[str, Any]:
    raise _NotDoneYet


def _find(session: Session, attempt: Attempt, digest: str) -> Reply | None:
    same = select(Reply).where(Reply.api_key_id == attempt.api_key_id, Reply.route == attempt.route)
    if attempt.idempotency_key is not None:
        earlier = session.scalars(same.where(Reply.idempotency_key == attempt.idempotency_key)).one_or_none()
        if earlier is not None and earlier.created_at <= utc_now() - KEPT:
            session.delete(earlier)
            session.flush()
            return None
        return earlier
    same = same.where(Reply.idempotency_key.is_(None), Reply.body_sha256 == digest)
    if attempt.retries > 0:
        newest = same.where(Reply.created_at > utc_now() - RETRIED).order_by(Reply.created_at.desc())
        return session.scalars(newest.limit(1)).one_or_none()
    # Processes on several machines have one clock in common, the database's.
    age_ms = int((time.monotonic() - attempt.received) * 1000)
    overtaken = same.where(Reply.awaits_original_since_ms > now_ms() - age_ms).order_by(Reply.created_at)
    retried = session.scalars(overtaken.limit(1)).one_or_none()
    if retried is not None:
        # A retry has one original; whoever else asks for the same wants another job.
        retried.awaits_original_since_ms = None
    return retried


def forget_replies(database: Database) -> None:
    """Remove the replies that are not given again any more."""
    before = utc_now() - KEPT
    with read_only(database) as session:
        if session.scalars(select(Reply.id).where(Reply.created_at <= before).limit(1)).one_or_none() is None:
            return
    with unit_of_work(database) as session:
        session.execute(delete(Reply).where(Reply.created_at <= before))
