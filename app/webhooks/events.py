"""Telling a project's endpoints that something happened.

The deliveries are rows of the transaction in which it happens, so that none is lost, and none is sent of a change that
was rolled back.
"""

import json

from sqlalchemy.orm import Session

from app.domain.job import State
from app.models.base import new_id, utc_now
from app.models.webhook import EventType
from app.webhooks import repository

REACHED: dict[State, EventType] = {
    State.SUCCEEDED: EventType.SUCCEEDED,
    State.FAILED: EventType.FAILED,
    State.CANCELLED: EventType.CANCELLED,
    State.PAUSED: EventType.PAUSED,
    State.HELD: EventType.HELD,
}
"""What is told of a job that comes to a state."""


def announce(session: Session, project_id: str, event_type: EventType, object_id: str) -> None:
    """Insert a delivery for every endpoint of the project that wants to be told of this."""
    endpoints = repository.list_listening(session, project_id, event_type)
    if not endpoints:
        return
    event_id = new_id("evt_")
    body = build_body(event_id, event_type, object_id)
    for endpoint in endpoints:
        repository.add_delivery(session, endpoint, event_id=event_id, event_type=event_type, body=body)


def build_body(event_id: str, event_type: EventType, object_id: str) -> bytes:
    """Return an event as it is sent: it names what it is about and tells no more."""
    event = {
        "id": event_id,
        "object": "event",
        "type": event_type.value,
        "created_at": int(utc_now().timestamp()),
        "data": {"id": object_id},
    }
    return json.dumps(event).encode("ascii")
