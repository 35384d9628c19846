"""Webhook endpoints and their deliveries on the wire, as the openai client names their fields; ours are added."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from app.domain.frozen import Frozen
from app.models.webhook import EventType, WebhookDelivery, WebhookEndpoint
from app.webhooks.egress import MAX_URL
from app.webhooks.signing import hint_secret, show_secret


def _without_doubles(types: list[EventType]) -> list[EventType]:
    return list(dict.fromkeys(types))


Name = Annotated[str, Field(min_length=1, max_length=255, description="What people call the endpoint.")]
Url = Annotated[
    str, Field(min_length=1, max_length=MAX_URL, description="HTTPS address that events are sent to.")
]
EventTypes = Annotated[
    list[EventType],
    Field(min_length=1, max_length=100, description="The events that are sent."),
    AfterValidator(_without_doubles),
]


class EndpointCreate(Frozen):
    """The body of `POST /v1/webhook_endpoints`."""

    name: Name
    url: Url
    event_types: EventTypes


class EndpointUpdate(Frozen):
    """The body of `POST /v1/webhook_endpoints/{id}`: what is to change."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None
    enabled: bool | None = Field(None, strict=True, description="Whether events are sent.")


class SecretRotate(Frozen):
    """The body of `POST /v1/webhook_endpoints/{id}/rotate_secret`."""

    keep_old_secret_active_for_24_hours: bool = Field(
        False, strict=True, description="Whether deliveries are signed by both secrets for a day."
    )


class EndpointTest(Frozen):
    """The body of `POST /v1/webhook_endpoints/{id}/test`."""

    event_type: EventType = Field(description="The event to send a sample of.")


def endpoint_to_wire(endpoint: WebhookEndpoint, *, with_secret: bool = False) -> dict[str, Any]:
    """Return an endpoint as an object of the wire; the secret is only shown when it was made just now."""
    until_ms = endpoint.former_secret_until_ms
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "created_at": int(endpoint.created_at.timestamp()),
        "updated_at": int(endpoint.updated_at.timestamp()),
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "signing_secret_hint": hint_secret(endpoint.secret),
        "old_secret_expires_at": None if until_ms is None else until_ms // 1000,
        "enabled": endpoint.enabled,
        "disabled_reason": endpoint.disabled_reason,
        **({"signing_secret": show_secret(endpoint.secret)} if with_secret else {}),
    }


def delivery_to_wire(delivery: WebhookDelivery) -> dict[str, Any]:
    """Return a line of the log. Nothing of what a receiver replied is in it but the status."""
    next_ms = delivery.next_attempt_at_ms
    return {
        "id": delivery.id,
        "object": "webhook_endpoint.delivery",
        "created_at": int(delivery.created_at.timestamp()),
        "webhook_endpoint_id": delivery.endpoint_id,
        "event_id": delivery.event_id,
        "event_type": delivery.event_type,
        "status": delivery.state,
        "attempts": delivery.attempts,
        "attempted_at": int(delivery.attempted_at.timestamp()) if delivery.attempted_at else None,
        "status_code": delivery.status_code,
        "error": delivery.error,
        "next_attempt_at": None if next_ms is None else next_ms // 1000,
    }
