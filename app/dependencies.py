"""What endpoints ask for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.auth import Caller, admit, read_digest, require, write_use_down
from app.database import Database, read_only, unit_of_work
from app.domain.safety_policy import SafetyPolicy
from app.domain.scopes import Scope
from app.errors import RateLimited
from app.jobs.waker import Waker
from app.logs import add_fields
from app.rate_limits import RateLimiter, format_duration
from app.sessions import read_authorization
from app.settings import Settings


# Those that only look something up are async: a call in a thread would cost more than they do.
async def get_settings(request: Request) -> Settings:
    """Return the settings that the application was made with."""
    settings: Settings = request.app.state.settings
    return settings


async def get_database(request: Request) -> Database:
    """Return the application's database."""
    database: Database = request.app.state.database
    return database


async def get_policy(request: Request) -> tuple[SafetyPolicy, str]:
    """Return the operator's policy and its digest."""
    policy: tuple[SafetyPolicy, str] = request.app.state.policy
    return policy


async def get_waker(request: Request) -> Waker:
    """Return what tells that a job has changed."""
    waker: Waker = request.app.state.waker
    return waker


class Bearer(SecurityBase):
    """The dependency behind every key: it returns the caller, and tells the description of the API how one asks."""

    model = HTTPBearerModel(description="A key of this service.")
    scheme_name = "HTTPBearer"

    async def __call__(self, request: Request) -> Caller:
        """Return the caller as the database knows them before the endpoint begins, and count the request."""
        state = request.app.state
        digest = read_digest(read_authorization(request))
        caller, use_is_due = admit(await state.callers.get(digest))
        if use_is_due:
            await run_in_threadpool(write_use_down, state.database, caller.key_id)
        job_id = request.path_params.get("job_id")
        add_fields(project=caller.project_id, key=caller.key_id, job=job_id and job_id[:64])
        limiter: RateLimiter | None = state.rate_limiter
        allowance = await run_in_threadpool(limiter.count, caller.key_id) if limiter is not None else None
        if allowance is not None:
            request.state.reply_headers = allowance.headers()
            if not allowance.granted:
                raise RateLimited(
                    f"this key may send {allowance.limit} requests a minute and has; come again in"
                    f" {format_duration(allowance.reset_s)}, or ask the operator to raise TETHER_REQUESTS_PER_MINUTE"
                )
        return caller


get_caller = Bearer()


@dataclass(frozen=True, slots=True)
class Needs:
    """A dependency that lets a request through whose key has one of the scopes. `check_routes` finds it on a route."""

    scopes: tuple[Scope, ...]

    async def __call__(self, caller: Annotated[Caller, Depends(get_caller)]) -> Caller:
        """Return the caller. Raises PermissionDenied."""
        if caller.scopes.isdisjoint(self.scopes):
            require(caller, self.scopes[0])
        return caller


def needs(scope: Scope, *others: Scope) -> Any:
    """Declare the scope that a route needs: `@router.get("/x", dependencies=[needs(Scope.JOBS_READ)])`.

    Each of several opens the route, which then requires the one that what was asked for needs.
    """
    return Depends(Needs((scope, *others)))


def get_session(database: Annotated[Database, Depends(get_database)]) -> Iterator[Session]:
    """Yield the session of a request that writes."""
    with unit_of_work(database) as session:
        yield session


def get_read_session(database: Annotated[Database, Depends(get_database)]) -> Iterator[Session]:
    """Yield the session of a request that only reads."""
    with read_only(database) as session:
        yield session


SettingsDep = Annotated[Settings, Depends(get_settings)]
DatabaseDep = Annotated[Database, Depends(get_database)]
WakerDep = Annotated[Waker, Depends(get_waker)]
PolicyDep = Annotated[tuple[SafetyPolicy, str], Depends(get_policy)]
CallerDep = Annotated[Caller, Depends(get_caller)]
# With the scope "function" the commit happens before the answer leaves; by default it would come after.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]
ReadSessionDep = Annotated[Session, Depends(get_read_session, scope="function")]
