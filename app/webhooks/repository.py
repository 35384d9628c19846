"""Every query of webhook endpoints and their deliveries.

A delivery is claimed by moving its due time to the end of a lease, by compare-and-set on its number of attempts and by
the database's clock. Whoever falls silent is followed by another; what it reports later matches nothing any more.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, tuple_, update
from sqlalchemy.orm import Session

from app.models.base import new_id, now_ms, utc_now
from app.models.tenancy import Project
from app.models.webhook import DeliveryState, EventType, WebhookDelivery, WebhookEndpoint
from app.pages import unknown_cursor


def read_clock(session: Session) -> int:
    """Return the database's time in milliseconds."""
    return int(session.scalars(select(now_ms())).one())


def lock_project(session: Session, project_id: str) -> None:
    """Let nobody else do the same in this project before this transaction ends."""
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update())


def count_endpoints(session: Session, project_id: str) -> int:
    """Return how many endpoints a project has."""
    query = select(func.count()).select_from(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    return session.scalars(query).one()


def get_endpoint(
    session: Session, project_id: str, endpoint_id: str, *, lock: bool = False
) -> WebhookEndpoint | None:
    """Return an endpoint of the project; with `lock`, nobody else changes it before this transaction ends."""
    query = select(WebhookEndpoint).where(
        WebhookEndpoint.id == endpoint_id, WebhookEndpoint.project_id == project_id
    )
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def list_endpoints(
    session: Session, project_id: str, *, after: str | None, limit: int
) -> Sequence[WebhookEndpoint]:
    """Return up to limit + 1 endpoints, newest first."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    if after is not None:
        cursor = get_endpoint(session, project_id, after)
        if cursor is None:
            raise unknown_cursor(after)
        key = tuple_(WebhookEndpoint.created_at, WebhookEndpoint.id)
        query = query.where(key < (cursor.created_at, cursor.id))
    return session.scalars(
        query.order_by(WebhookEndpoint.created_at.desc(), WebhookEndpoint.id.desc()).limit(limit + 1)
    ).all()


def list_listening(session: Session, project_id: str, event_type: EventType) -> list[WebhookEndpoint]:
    """Return the endpoints that are told of a kind of event. None of them is deleted before this transaction ends."""
    endpoints = session.scalars(
        select(WebhookEndpoint)
        .where(WebhookEndpoint.project_id == project_id, WebhookEndpoint.enabled)
        .order_by(WebhookEndpoint.id)
        .with_for_update(read=True, key_share=True)
    )
    return [each for each in endpoints if event_type in each.event_types]


def add_delivery(
    session: Session,
    endpoint: WebhookEndpoint,
    *,
    event_id: str,
    event_type: EventType,
    body: bytes,
    **values: Any,
) -> WebhookDelivery:
    """Insert a delivery that is due now, unless `values` say how it went already."""
    delivery = WebhookDelivery(
        **{
            "id": new_id("whdel_"),
            "project_id": endpoint.project_id,
            "endpoint_id": endpoint.id,
            "event_id": event_id,
            "event_type": event_type,
            "body": body,
            "state": DeliveryState.PENDING,
            "attempts": 0,
            "next_attempt_at_ms": read_clock(session),
            "created_at": utc_now(),
            **values,
        }
    )
    session.add(delivery)
    return delivery


def get_delivery(session: Session, endpoint: WebhookEndpoint, delivery_id: str) -> WebhookDelivery | None:
    """Return a delivery to an endpoint."""
    query = select(WebhookDelivery).where(
        WebhookDelivery.id == delivery_id, WebhookDelivery.endpoint_id == endpoint.id
    )
    return session.scalars(query).one_or_none()


def list_deliveries(
    session: Session, endpoint: WebhookEndpoint, *, after: str | None, limit: int
) -> Sequence[WebhookDelivery]:
    """Return up to limit + 1 deliveries to an endpoint, newest first."""
    query = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint.id)
    if after is not None:
        cursor = get_delivery(session, endpoint, after)
        if cursor is None:
            raise unknown_cursor(after)
        key = tuple_(WebhookDelivery.created_at, WebhookDelivery.id)
        query = query.where(key < (cursor.created_at, cursor.id))
    return session.scalars(
        query.order_by(WebhookDelivery.created_at.desc(), WebhookDelivery.id.desc()).limit(limit + 1)
    ).all()


def list_due_endpoints(session: Session, *, busy: Collection[str], limit: int) -> Sequence[str]:
    """Return the ids of endpoints, other than the busy ones, that wait for a delivery; the longest waiting first."""
    waiting_since = func.min(WebhookDelivery.next_attempt_at_ms)
    return session.scalars(
        select(WebhookDelivery.endpoint_id)
        .where(
            WebhookDelivery.state == DeliveryState.PENDING,
            WebhookDelivery.next_attempt_at_ms <= now_ms(),
            WebhookDelivery.endpoint_id.not_in(busy),
        )
        .group_by(WebhookDelivery.endpoint_id)
        .order_by(waiting_since)
        .limit(limit)
    ).all()


def claim_due(session: Session, endpoint_id: str, *, lease_ms: int) -> WebhookDelivery | None:
    """Take the delivery to an endpoint that waits longest, until the lease ends; None where none is due."""
    due = session.execute(
        select(WebhookDelivery.id, WebhookDelivery.attempts)
        .where(
            WebhookDelivery.endpoint_id == endpoint_id,
            WebhookDelivery.state == DeliveryState.PENDING,
            WebhookDelivery.next_attempt_at_ms <= now_ms(),
        )
        .order_by(WebhookDelivery.next_attempt_at_ms)
        .limit(1)
    ).one_or_none()
    if due is None:
        return None
    claimed = session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == due.id, WebhookDelivery.attempts == due.attempts)
        .where(WebhookDelivery.state == DeliveryState.PENDING)
        .values(
            attempts=WebhookDelivery.attempts + 1,
            tried_since_ms=func.coalesce(WebhookDelivery.tried_since_ms, now_ms()),
            next_attempt_at_ms=now_ms() + lease_ms,
            attempted_at=utc_now(),
        )
        .returning(WebhookDelivery.id)
    ).one_or_none()
    return session.get(WebhookDelivery, due.id, populate_existing=True) if claimed else None


def finish_attempt(session: Session, delivery: WebhookDelivery, **values: Any) -> bool:
    """Note how an attempt went. False where another attempt has begun meanwhile, or the delivery is gone."""
    finished = session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == delivery.id, WebhookDelivery.attempts == delivery.attempts)
        .values(**values)
        .returning(WebhookDelivery.id)
    ).one_or_none()
    return finished is not None


def give_up_pending(session: Session, endpoint_id: str, error: str) -> None:
    """Try nothing more of what waits for an endpoint."""
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.state == DeliveryState.PENDING)
        .values(state=DeliveryState.FAILED, next_attempt_at_ms=None, error=error)
    )


def note_success(session: Session, endpoint_id: str) -> None:
    """Note that an endpoint took a delivery."""
    session.execute(
        update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id).values(good_at_ms=now_ms())
    )


def disable_silent(session: Session, endpoint_id: str, *, since_ms: int, reason: str) -> bool:
    """Disable an endpoint that took nothing since then. False where it did, or is disabled already."""
    disabled = session.execute(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.enabled)
        .where(WebhookEndpoint.good_at_ms <= since_ms)
        .values(enabled=False, disabled_reason=reason, updated_at=utc_now())
        .returning(WebhookEndpoint.id)
    ).one_or_none()
    return disabled is not None


def delete_finished(session: Session, before: datetime) -> None:
    """Forget deliveries of before a time that nothing more is tried of."""
    session.execute(
        delete(WebhookDelivery).where(
            WebhookDelivery.state != DeliveryState.PENDING, WebhookDelivery.created_at < before
        )
    )
