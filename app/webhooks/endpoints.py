"""/v1/webhook_endpoints and /v1/webhook_event_types"""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from app.auth import Caller
from app.database import Database, read_only, unit_of_work
from app.dependencies import CallerDep, DatabaseDep, ReadSessionDep, SessionDep, SettingsDep, needs
from app.domain.scopes import Scope
from app.models.webhook import EventType
from app.pages import build_page
from app.webhooks import repository, service
from app.webhooks.delivery import Outcome, Outgoing, attempt
from app.webhooks.schemas import (
    EndpointCreate,
    EndpointTest,
    EndpointUpdate,
    SecretRotate,
    delivery_to_wire,
    endpoint_to_wire,
)

router = APIRouter(prefix="/v1", tags=["webhooks"])

READ = [needs(Scope.WEBHOOKS_READ)]
WRITE = [needs(Scope.WEBHOOKS_WRITE)]
After = Annotated[str | None, Query()]
Limit = Annotated[int, Query(ge=1, le=100)]


@router.get("/webhook_event_types", dependencies=READ)
def list_event_types(caller: CallerDep) -> dict[str, Any]:
    """List the events that an endpoint can be told of."""
    return {"object": "list", "data": [each.value for each in EventType]}


@router.post("/webhook_endpoints", dependencies=WRITE)
def create_endpoint(
    caller: CallerDep, session: SessionDep, settings: SettingsDep, body: EndpointCreate
) -> dict[str, Any]:
    """Add an endpoint. The reply has its signing secret, which is shown at no other time."""
    endpoint = service.create_endpoint(session, settings, caller, body)
    return endpoint_to_wire(endpoint, with_secret=True)


@router.get("/webhook_endpoints", dependencies=READ)
def list_endpoints(
    caller: CallerDep, session: ReadSessionDep, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """List the project's endpoints, newest first."""
    endpoints = repository.list_endpoints(session, caller.project_id, after=after, limit=limit)
    return build_page([endpoint_to_wire(each) for each in endpoints], limit)


@router.get("/webhook_endpoints/{webhook_endpoint_id}", dependencies=READ)
def retrieve_endpoint(caller: CallerDep, session: ReadSessionDep, webhook_endpoint_id: str) -> dict[str, Any]:
    """Return an endpoint."""
    return endpoint_to_wire(service.get_endpoint(session, caller.project_id, webhook_endpoint_id))


@router.post("/webhook_endpoints/{webhook_endpoint_id}", dependencies=WRITE)
def update_endpoint(
    caller: CallerDep,
    session: SessionDep,
    settings: SettingsDep,
    webhook_endpoint_id: str,
    body: EndpointUpdate,
) -> dict[str, Any]:
    """Change name, URL or events of an endpoint, or whether it is told of them."""
    return endpoint_to_wire(service.update_endpoint(session, settings, caller, webhook_endpoint_id, body))


@router.delete("/webhook_endpoints/{webhook_endpoint_id}", dependencies=WRITE)
def delete_endpoint(caller: CallerDep, session: SessionDep, webhook_endpoint_id: str) -> dict[str, Any]:
    """Delete an endpoint and its log."""
    service.delete_endpoint(session, caller, webhook_endpoint_id)
    return {"id": webhook_endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True}


@router.post("/webhook_endpoints/{webhook_endpoint_id}/rotate_secret", dependencies=WRITE)
def rotate_secret(
    caller: CallerDep, session: SessionDep, webhook_endpoint_id: str, body: SecretRotate | None = None
) -> dict[str, Any]:
    """Replace the signing secret. The reply has the new one, which is shown at no other time."""
    keep = body is not None and body.keep_old_secret_active_for_24_hours
    endpoint = service.rotate_secret(session, caller, webhook_endpoint_id, keep_former=keep)
    return endpoint_to_wire(endpoint, with_secret=True)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test", dependencies=WRITE)
async def test_endpoint(
    caller: CallerDep,
    database: DatabaseDep,
    settings: SettingsDep,
    webhook_endpoint_id: str,
    body: EndpointTest,
) -> dict[str, Any]:
    """Send a sample event now, once, and return the status of the reply."""
    # A receiver may take its time; it holds neither a thread nor a connection to the database meanwhile.
    outgoing = await run_in_threadpool(_prepare_test, database, caller, webhook_endpoint_id, body)
    outcome = await attempt(outgoing, settings)
    await run_in_threadpool(_record_test, database, caller, webhook_endpoint_id, body, outgoing, outcome)
    if outcome.status_code is None:
        raise service.test_failed(outcome)
    return {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": webhook_endpoint_id,
        "event_type": body.event_type,
        "status_code": outcome.status_code,
        "success": True,
    }


@router.get("/webhook_endpoints/{webhook_endpoint_id}/deliveries", dependencies=READ)
def list_deliveries(
    caller: CallerDep,
    session: ReadSessionDep,
    webhook_endpoint_id: str,
    after: After = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    """List what was sent to an endpoint, or is to be sent, newest first."""
    endpoint = service.get_endpoint(session, caller.project_id, webhook_endpoint_id)
    deliveries = repository.list_deliveries(session, endpoint, after=after, limit=limit)
    return build_page([delivery_to_wire(each) for each in deliveries], limit)


@router.post(
    "/webhook_endpoints/{webhook_endpoint_id}/deliveries/{delivery_id}/redeliver", dependencies=WRITE
)
def redeliver(
    caller: CallerDep, session: SessionDep, webhook_endpoint_id: str, delivery_id: str
) -> dict[str, Any]:
    """Send an event again, with the same id."""
    return delivery_to_wire(service.redeliver(session, caller, webhook_endpoint_id, delivery_id))


def _prepare_test(database: Database, caller: Caller, endpoint_id: str, body: EndpointTest) -> Outgoing:
    with read_only(database) as session:
        return service.prepare_test(session, caller, endpoint_id, body.event_type)


def _record_test(
    database: Database,
    caller: Caller,
    endpoint_id: str,
    body: EndpointTest,
    outgoing: Outgoing,
    outcome: Outcome,
) -> None:
    with unit_of_work(database) as session:
        service.record_test(session, caller, endpoint_id, body.event_type, outgoing, outcome)
