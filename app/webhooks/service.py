"""The rules of webhook endpoints: what they may point at, how many there may be, how their secret is changed."""

from sqlalchemy.orm import Session

from app.auth import Caller
from app.errors import Conflict, InvalidRequest, NotFound
from app.models.base import new_id, utc_now
from app.models.webhook import DeliveryState, EventType, WebhookDelivery, WebhookEndpoint
from app.settings import Settings
from app.webhooks import repository
from app.webhooks.delivery import Outcome, Outgoing, address
from app.webhooks.egress import UrlRefused, parse_target
from app.webhooks.events import build_body
from app.webhooks.schemas import EndpointCreate, EndpointUpdate
from app.webhooks.signing import make_secret

MAX_ENDPOINTS = 10
"""Of one project."""
OVERLAP_MS = 24 * 3600 * 1000
"""For how long a former secret signs too."""
SAMPLE = "ftjob-sample"
"""What a test event is about; no job has this id."""


def create_endpoint(
    session: Session, settings: Settings, caller: Caller, body: EndpointCreate
) -> WebhookEndpoint:
    """Add an endpoint with a new secret. Raises InvalidRequest for a URL that is never sent to, and Conflict at the limit."""
    _check_url(settings, body.url)
    repository.lock_project(session, caller.project_id)
    if repository.count_endpoints(session, caller.project_id) >= MAX_ENDPOINTS:
        raise Conflict(
            f"this project has {MAX_ENDPOINTS} webhook endpoints, which is the limit; delete one that is not needed",
            code="too_many_webhook_endpoints",
        )
    now = utc_now()
    endpoint = WebhookEndpoint(
        id=new_id("whe_"),
        project_id=caller.project_id,
        name=body.name,
        url=body.url,
        event_types=[each.value for each in body.event_types],
        enabled=True,
        secret=make_secret(),
        good_at_ms=repository.read_clock(session),
        created_at=now,
        updated_at=now,
    )
    session.add(endpoint)
    session.flush()
    return endpoint


def get_endpoint(
    session: Session, project_id: str, endpoint_id: str, *, lock: bool = False
) -> WebhookEndpoint:
    """Return an endpoint of the project. Raises NotFound."""
    endpoint = repository.get_endpoint(session, project_id, endpoint_id, lock=lock)
    if endpoint is None:
        raise NotFound(
            f"no webhook endpoint has the id {endpoint_id!r} in this project", param="webhook_endpoint_id"
        )
    return endpoint


def update_endpoint(
    session: Session, settings: Settings, caller: Caller, endpoint_id: str, body: EndpointUpdate
) -> WebhookEndpoint:
    """Change what the body names. Enabled again, or elsewhere, an endpoint has another 72 hours to take something."""
    endpoint = get_endpoint(session, caller.project_id, endpoint_id, lock=True)
    is_new_start = False
    if body.url is not None and body.url != endpoint.url:
        _check_url(settings, body.url)
        endpoint.url = body.url
        is_new_start = True
    if body.enabled is not None and body.enabled is not endpoint.enabled:
        endpoint.enabled = body.enabled
        endpoint.disabled_reason = None
        is_new_start = is_new_start or body.enabled
    if body.name is not None:
        endpoint.name = body.name
    if body.event_types is not None:
        endpoint.event_types = [each.value for each in body.event_types]
    if session.is_modified(endpoint):
        endpoint.updated_at = utc_now()
    if is_new_start:
        endpoint.good_at_ms = repository.read_clock(session)
    return endpoint


def rotate_secret(
    session: Session, caller: Caller, endpoint_id: str, *, keep_former: bool
) -> WebhookEndpoint:
    """Give an endpoint a new secret. The former one signs too for a day, or from now on never."""
    endpoint = get_endpoint(session, caller.project_id, endpoint_id, lock=True)
    until_ms = repository.read_clock(session) + OVERLAP_MS
    endpoint.former_secret = endpoint.secret if keep_former else None
    endpoint.former_secret_until_ms = until_ms if keep_former else None
    endpoint.secret = make_secret()
    endpoint.updated_at = utc_now()
    return endpoint


def delete_endpoint(session: Session, caller: Caller, endpoint_id: str) -> None:
    """Forget an endpoint, its secrets and its log."""
    session.delete(get_endpoint(session, caller.project_id, endpoint_id))


def prepare_test(session: Session, caller: Caller, endpoint_id: str, event_type: EventType) -> Outgoing:
    """Return a sample event for an endpoint, enabled or not, whatever it is told of otherwise."""
    endpoint = get_endpoint(session, caller.project_id, endpoint_id)
    event_id = new_id("evt_")
    return address(session, endpoint, event_id, build_body(event_id, event_type, SAMPLE))


def record_test(
    session: Session,
    caller: Caller,
    endpoint_id: str,
    event_type: EventType,
    outgoing: Outgoing,
    outcome: Outcome,
) -> None:
    """Note in the log how sending a sample went; it is not tried again."""
    endpoint = get_endpoint(session, caller.project_id, endpoint_id)
    repository.add_delivery(
        session,
        endpoint,
        event_id=outgoing.event_id,
        event_type=event_type,
        body=outgoing.body,
        state=DeliveryState.DELIVERED if outcome.error is None else DeliveryState.FAILED,
        attempts=1,
        next_attempt_at_ms=None,
        attempted_at=utc_now(),
        status_code=outcome.status_code,
        error=outcome.error,
    )


def test_failed(outcome: Outcome) -> InvalidRequest:
    """Return the error for a sample that got no reply."""
    return InvalidRequest(
        f"the receiver gave no reply to the test event: {outcome.error}", code="webhook_not_delivered"
    )


def redeliver(session: Session, caller: Caller, endpoint_id: str, delivery_id: str) -> WebhookDelivery:
    """Make a delivery due now, with 72 hours from its next attempt on. Raises Conflict where the endpoint is disabled."""
    endpoint = get_endpoint(session, caller.project_id, endpoint_id)
    delivery = repository.get_delivery(session, endpoint, delivery_id)
    if delivery is None:
        raise NotFound(f"no delivery to {endpoint_id} has the id {delivery_id!r}", param="delivery_id")
    if not endpoint.enabled:
        raise Conflict(
            f"the webhook endpoint {endpoint.id} is disabled; enable it first",
            code="webhook_endpoint_disabled",
        )
    delivery.state = DeliveryState.PENDING
    delivery.tried_since_ms = None
    delivery.next_attempt_at_ms = repository.read_clock(session)
    return delivery


def _check_url(settings: Settings, url: str) -> None:
    try:
        parse_target(url, settings.private_hosts)
    except UrlRefused as refused:
        raise InvalidRequest(f"url: {refused}", param="url", code="webhook_url_refused") from None
