"""The application: routers, lifespan, request ids, and the one handler from errors to the wire's error form."""

import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import health, metrics
from app.api_page import add_api_page
from app.base_models import endpoints as base_models
from app.body_limit import BodyLimit
from app.conditional import ReplyCache
from app.critics import endpoints as critics
from app.dashboard.endpoints import add_dashboard
from app.database import DATABASE_AWAY, Database, open_engine
from app.domain.safety_policy import load_policy
from app.errors import DatabaseUnavailable, InvalidRequest, NotFound, RateLimited, TetherError
from app.evaluations import endpoints as evaluations
from app.evidence import endpoints as evidence
from app.files import endpoints as files
from app.gathered import Gathered
from app.jobs import endpoints as jobs
from app.jobs.live import look, read_head, read_replies
from app.jobs.waker import Waker
from app.keys import endpoints as keys
from app.known_callers import KnownCallers
from app.logs import begin_fields
from app.metrics import Metrics
from app.notary import endpoints as notary
from app.openapi import DescribedApi
from app.permissions import endpoints as permissions
from app.policies import endpoints as policies
from app.projects import endpoints as projects
from app.queue import build_publisher
from app.rate_limits import build_rate_limiter
from app.reports import endpoints as reports
from app.route_check import UNNOTED, check_routes, prove_closed
from app.safety_sets import endpoints as safety_sets
from app.settings import Settings
from app.unsupported import router as unsupported
from app.uploads import endpoints as uploads
from app.usage import endpoints as usage
from app.webhooks import endpoints as webhooks

log = logging.getLogger(__name__)
requests_log = logging.getLogger("app.requests")

METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
CURVE_CACHE_BYTES = 32 * 1024 * 1024


def create_app(settings: Settings) -> FastAPI:
    """Build the API from its settings."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await prove_closed(app)
        yield
        app.state.database.engine.dispose()

    app = DescribedApi(title="Tether", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.settings = settings
    app.state.policy = load_policy(settings.policy_file)
    app.state.database = Database(open_engine(settings.database_url), build_publisher(settings))
    app.state.callers = KnownCallers(app.state.database)
    app.state.jobs = Gathered(partial(read_replies, app.state.database))
    app.state.waker = Waker(partial(look, app.state.database), partial(read_head, app.state.database))
    app.state.metrics = Metrics(app.state.database, settings)
    app.state.curves = ReplyCache(CURVE_CACHE_BYTES)
    app.state.rate_limiter = build_rate_limiter(settings)
    for part in (
        # Routes are tried in order, and this is what is asked most.
        jobs,
        health,
        metrics,
        files,
        base_models,
        critics,
        evaluations,
        safety_sets,
        keys,
        projects,
        usage,
        webhooks,
        uploads,
        permissions,
        policies,
        reports,
        notary,
        evidence,
    ):
        app.include_router(part.router)
    app.include_router(unsupported)
    add_api_page(app)
    add_dashboard(app)
    check_routes(app)
    app.add_middleware(BodyLimit, max_file_bytes=settings.max_file_bytes, refuse=_reply)
    app.add_middleware(RequestId)
    app.add_exception_handler(TetherError, _on_tether_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    for away in DATABASE_AWAY:
        app.add_exception_handler(away, _on_database_away)
    app.add_exception_handler(DataError, _on_data_error)
    app.add_exception_handler(Exception, _on_any_error)
    return app


class RequestId:
    """Give every reply an `x-request-id` and the time it took, as the openai client expects them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wrap `send` so that the headers are added to the start of the reply."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex}"
        begin_fields(request=request_id)
        # Starlette answers an unexpected error outside of this middleware; `_on_any_error` finds the id here.
        scope.setdefault("state", {})["request_id"] = request_id
        scope["state"]["received"] = started = time.monotonic()

        status = 500
        answered_s: float | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status, answered_s
            if message["type"] == "http.response.start":
                status, answered_s = message["status"], time.monotonic() - started
                elapsed_ms = int(answered_s * 1000)
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                    (b"openai-processing-ms", str(elapsed_ms).encode()),
                    *scope["state"].get("reply_headers", ()),
                    *_keep_private(scope["path"], message.get("headers", [])),
                ]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            _note_request(scope, status, time.monotonic() - started, answered_s)


def _keep_private(path: str, headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield what keeps others from storing a reply to one key, where the reply says nothing of that itself.

    A request with an Authorization header is stored by nobody in between; one with a session's cookie would be.
    """
    said = {name for name, _ in headers}
    if path.startswith(("/v1/", "/dashboard/session")) and b"cache-control" not in said:
        yield b"cache-control", b"private, no-store"
        yield b"vary", b"authorization, cookie"


def _note_request(scope: Scope, status: int, ended_s: float, answered_s: float | None) -> None:
    """Count and log a request that is over. A stream counts until it began, and is logged with its whole length."""
    if UNNOTED in scope:
        return
    route = getattr(scope.get("route"), "path", "unknown")
    # A client may invent methods, and every one would be a series of its own.
    method = scope["method"] if scope["method"] in METHODS else "other"
    scope["app"].state.metrics.count(method, route, status, ended_s if answered_s is None else answered_s)
    fields = {"method": method, "route": route, "status": status, "duration_ms": round(ended_s * 1000, 1)}
    requests_log.info("request", extra={"fields": fields})


def _reply(error: TetherError) -> JSONResponse:
    # A client that retries a conflict, or a refusal that no retry can change, only adds load.
    passes = isinstance(error, RateLimited) or (error.status >= 500 and error.status != 501)
    headers = {} if passes else {"x-should-retry": "false"}
    return JSONResponse({"error": error.to_wire()}, status_code=error.status, headers=headers)


def _on_tether_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TetherError)  # noqa: S101  (The handler is registered for this class.)
    return _reply(error)


def _on_validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101  (As above.)
    return _reply(describe_validation_error(error))


def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101  (As above.)
    if error.status_code == 404:
        return _reply(NotFound(f"there is no {request.method} {request.url.path}", code="unknown_url"))
    reply = TetherError(f"{request.method} {request.url.path}: {error.detail}", code="http_error")
    if error.status_code < 500:
        reply.type = "invalid_request_error"
    return JSONResponse({"error": reply.to_wire()}, status_code=error.status_code, headers=error.headers)


def _on_database_away(_: Request, error: Exception) -> JSONResponse:
    log.error("the database failed: %s", error)
    return _reply(
        DatabaseUnavailable(
            "the database cannot be reached or is busy; nothing was changed. Send the request again"
        )
    )


def _on_data_error(*_: object) -> JSONResponse:
    return _reply(InvalidRequest("the request holds a character that no database keeps, such as NUL"))


def _on_any_error(request: Request, error: Exception) -> JSONResponse:
    request_id: str = request.state.request_id
    log.error("unexpected error in %s %s (%s)", request.method, request.url.path, request_id, exc_info=error)
    reply = _reply(
        TetherError(
            "an unexpected error happened on the server; its log has the details", code="internal_error"
        )
    )
    reply.headers["x-request-id"] = request_id
    return reply


def describe_validation_error(error: RequestValidationError) -> InvalidRequest:
    """Return the first problem of a request as the wire's error, with `param` as a JSON path."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not JSON: {first['ctx']['error']}", param=None)
    body = error.body if first["loc"][0] == "body" else None
    path = locate(first["loc"][1:], body, missing=first["type"] == "missing")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown field; this service does not know it, and nothing is ignored silently"
    elif first["type"] == "missing":
        message = "this field is required"
    elif first["type"].startswith("union_tag_"):
        tag = first["ctx"]["discriminator"].strip("'")
        path = f"{path}.{tag}" if path else tag
        message = "missing; it says which of the known kinds this object is"
        if first["type"] == "union_tag_invalid":
            message = f"found {first['ctx']['tag']!r}; expected one of {first['ctx']['expected_tags']}"
    elif first["type"] == "dict_type" and not path:
        message = "the body is not a JSON object; send one, with the header Content-Type: application/json"
    elif first["type"] == "string_unicode":
        message = (
            "holds half of a surrogate pair, which is no character; send both halves, or the character itself"
        )
    elif first["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}; found {_shorten(first.get('input'))}"
    where = path or str(first["loc"][0])
    return InvalidRequest(f"{where}: {message}", param=path or None)


def locate(location: tuple[Any, ...], body: Any, *, missing: bool = False) -> str:
    """Return the dotted path of a pydantic location, without the names of union members that it contains."""
    path = ""
    value = body
    for at, part in enumerate(location):
        inside = isinstance(value, dict) and part in value
        indexed = isinstance(value, list) and isinstance(part, int) and part < len(value)
        last_missing = missing and at == len(location) - 1
        if not isinstance(body, dict | list) or inside or last_missing:
            path += f".{part}" if path else str(part)
        elif indexed:
            path += f"[{part}]"
        else:
            continue
        if inside or indexed:
            value = value[part]
    return path


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
