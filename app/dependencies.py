"""What endpoints ask for."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Header, Request
from sqlalchemy.orm import Session

from app.auth import Caller, authenticate, require_operator
from app.database import Database, read_only, unit_of_work
from app.domain.safety_policy import SafetyPolicy
from app.settings import Settings


def get_settings(request: Request) -> Settings:
    """Return the settings that the application was made with."""
    settings: Settings = request.app.state.settings
    return settings


def get_database(request: Request) -> Database:
    """Return the application's database."""
    database: Database = request.app.state.database
    return database


def get_policy(request: Request) -> tuple[SafetyPolicy, str]:
    """Return the operator's policy and its digest."""
    policy: tuple[SafetyPolicy, str] = request.app.state.policy
    return policy


def get_caller(
    database: Annotated[Database, Depends(get_database)],
    authorization: Annotated[str | None, Header()] = None,
) -> Caller:
    """Return the caller, in a transaction of its own that is over before the endpoint begins."""
    return authenticate(database, authorization)


def get_operator(caller: Annotated[Caller, Depends(get_caller)]) -> Caller:
    """Return the caller where it is an operator. Raises PermissionDenied."""
    require_operator(caller)
    return caller


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
PolicyDep = Annotated[tuple[SafetyPolicy, str], Depends(get_policy)]
CallerDep = Annotated[Caller, Depends(get_caller)]
OperatorDep = Annotated[Caller, Depends(get_operator)]
# With the scope "function" the commit happens before the answer leaves; by default it would come after.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]
ReadSessionDep = Annotated[Session, Depends(get_read_session, scope="function")]
