"""From a bearer key to the caller."""

from dataclasses import dataclass

from app.database import Database, read_only
from app.errors import NotAuthenticated, PermissionDenied
from app.keys.service import MEMBER, OPERATOR, find_key


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and for which project. Every query is scoped by `project_id`."""

    project_id: str
    key_id: str
    role: str = MEMBER


def authenticate(database: Database, authorization: str | None) -> Caller:
    """Return the caller behind an Authorization header. Raises NotAuthenticated."""
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise NotAuthenticated(
            "no API key was given; send the header «Authorization: Bearer KEY» (the openai client: api_key=...)"
        )
    with read_only(database) as session:
        found = find_key(session, key.strip())
        if found is None:
            raise NotAuthenticated("this API key is not known; use the one that `tether serve` showed")
        return Caller(project_id=found.project_id, key_id=found.id, role=found.role)


def require_operator(caller: Caller) -> None:
    """Raise PermissionDenied for a tenant: who could register a critic or anchors could switch safety off."""
    if caller.role != OPERATOR:
        raise PermissionDenied(
            f"this needs a key with the role {OPERATOR!r}, and this key has the role {caller.role!r}; critics and"
            " safety sets serve every project, so ask the operator of this installation to register them"
        )
