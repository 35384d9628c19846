"""Bearer keys: made, narrowed, rotated, revoked. A key never gives what the one that asks does not have."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.domain.scopes import SCOPES_OF, Role, Scope
from app.errors import ConfigurationError, Conflict, InvalidRequest, NotFound, PermissionDenied
from app.keys import repository
from app.keys.secret import digest_secret, is_damaged, make_secret
from app.models.base import new_id, utc_now
from app.models.tenancy import ApiKey, Project
from app.notary.repository import add_event

DEFAULT_PROJECT = "proj_default"
ADMINISTRATOR = "administrator"
MAX_NAME = 255
START = "start"
"""Who makes the first key."""


class NewKey(NamedTuple):
    """The row of a key, and what opens, which nobody can look up later."""

    row: ApiKey
    secret: str


@dataclass(frozen=True, slots=True)
class Grantor:
    """What the one that asks for a key has: no key may be more than that."""

    actor: str
    """Who it is in the installation's log: the id of a key, or a part of the installation."""
    project_id: str | None
    """None: keys of every project."""
    scopes: frozenset[Scope]
    expires_at: datetime | None


OPERATOR_AT_THE_MACHINE = Grantor("command-line", None, SCOPES_OF[Role.OPERATOR], None)
"""Who uses the command line has the database itself."""


def scopes_of(key: ApiKey | repository.KeyRow) -> frozenset[Scope]:
    """Return what a key may do: the scopes of its role, or those among them that it was given."""
    of_its_role = SCOPES_OF[Role(key.role)]
    return of_its_role if key.scopes is None else of_its_role.intersection(map(Scope, key.scopes))


def ensure_admin_key(session: Session, key: str | None) -> str | None:
    """Make sure that the first project has an operator's key; return the key if it was made just now.

    A given key is added where it is not known yet. Without one, a key is made if no operator has a live one.
    Raises ConfigurationError where the given key cannot open anything.
    """
    if key is None:
        if repository.has_live_operator(session, utc_now()):
            return None
        return add_key(session, name=ADMINISTRATOR, role=Role.OPERATOR, actor=START).secret
    if is_damaged(key):
        raise ConfigurationError(
            "TETHER_API_KEY has the form of a key, and its checksum is wrong; copy it again"
        )
    known = repository.find_key(session, digest_secret(key))
    if known is None:
        add_key(session, name=ADMINISTRATOR, role=Role.OPERATOR, secret=key, actor=START)
    elif known.revoked_at is not None:
        raise ConfigurationError(f"TETHER_API_KEY is the key {known.id}, which was revoked; set another one")
    return None


def ensure_project(session: Session) -> None:
    """Make sure of the first project, to which everything that the command line makes belongs."""
    if session.get(Project, DEFAULT_PROJECT) is None:
        session.add(Project(id=DEFAULT_PROJECT, name="Default", created_at=utc_now()))
        session.flush()


def add_key(
    session: Session,
    *,
    name: str,
    role: Role,
    project_id: str = DEFAULT_PROJECT,
    scopes: Iterable[Scope] | None = None,
    expires_at: datetime | None = None,
    secret: str | None = None,
    actor: str = OPERATOR_AT_THE_MACHINE.actor,
) -> NewKey:
    """Add a key, made now unless its secret is given, and note who did it. Raises InvalidRequest where it cannot be one."""
    if not name.strip() or len(name) > MAX_NAME or "\x00" in name:
        raise InvalidRequest(f"a key's name has 1 to {MAX_NAME} characters", param="name")
    wanted = None if scopes is None else frozenset(scopes)
    beyond = (wanted or frozenset()) - SCOPES_OF[role]
    if beyond:
        raise InvalidRequest(
            f"scopes: the role {role.value!r} does not have {_join(beyond)}; leave them out, or choose another role",
            param="scopes",
        )
    if wanted is not None and not wanted:
        raise InvalidRequest(
            "scopes: name at least one, or leave them out for all of the role's", param="scopes"
        )
    now = utc_now()
    if expires_at is not None and expires_at <= now:
        raise InvalidRequest("expires_at: this time is over; name one that is to come", param="expires_at")
    if project_id == DEFAULT_PROJECT:
        ensure_project(session)
    elif session.get(Project, project_id) is None:
        raise InvalidRequest(
            f"project_id: no project has the id {project_id!r}", param="project_id", code="project_not_found"
        )
    key_id = new_id("key_")
    secret = secret or make_secret(key_id)
    row = ApiKey(
        id=key_id,
        project_id=project_id,
        name=name,
        key_digest=digest_secret(secret),
        role=role.value,
        scopes=None if wanted is None else sorted(wanted),
        created_at=now,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    add_event(session, "key.created", actor=actor, subject=key_id)
    return NewKey(row, secret)


def grant_key(
    session: Session,
    grantor: Grantor,
    *,
    project_id: str,
    name: str,
    role: Role,
    scopes: Iterable[Scope] | None,
    expires_at: datetime | None,
) -> NewKey:
    """Add a key that may do no more, and no longer, than the one that asks. Raises PermissionDenied."""
    if grantor.project_id not in (None, project_id):
        raise PermissionDenied(
            f"project_id: only a key with the scope {Scope.ADMIN.value!r} makes keys of other projects",
            param="project_id",
        )
    expires_at = _bound(grantor, expires_at)
    made = add_key(
        session,
        name=name,
        role=role,
        project_id=project_id,
        scopes=scopes,
        expires_at=expires_at,
        actor=grantor.actor,
    )
    _check_not_stronger(grantor, made.row)
    return made


def rotate_key(session: Session, grantor: Grantor, key_id: str, *, overlap: timedelta) -> NewKey:
    """Make a key like this one, and let this one end after a while, so that there is time to change over."""
    old = _changeable(session, grantor, key_id)
    now = utc_now()
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise Conflict(f"the key {old.id} has ended; make a new one", code="key_ended")
    if old.replaced_by is not None:
        raise Conflict(
            f"the key {old.id} was rotated already, to {old.replaced_by}; rotate that one", code="key_rotated"
        )
    new = add_key(
        session,
        name=old.name,
        role=Role(old.role),
        project_id=old.project_id,
        scopes=None if old.scopes is None else map(Scope, old.scopes),
        # The new one lives as long as the old one was made to.
        expires_at=_bound(
            grantor, None if old.expires_at is None else now + (old.expires_at - old.created_at)
        ),
        actor=grantor.actor,
    )
    add_event(session, "key.rotated", actor=grantor.actor, subject=old.id)
    ends = now + overlap
    old.expires_at = ends if old.expires_at is None else min(ends, old.expires_at)
    old.replaced_by = new.row.id
    return new


def revoke_key(session: Session, grantor: Grantor, key_id: str) -> ApiKey:
    """Close a key for ever, at once. Doing it again changes nothing."""
    key = _changeable(session, grantor, key_id)
    if key.revoked_at is None:
        key.revoked_at = utc_now()
        add_event(session, "key.revoked", actor=grantor.actor, subject=key.id)
    return key


def get_key(session: Session, project_id: str | None, key_id: str, *, lock: bool = False) -> ApiKey:
    """Return a key of the project. Raises NotFound."""
    key = repository.get_key(session, project_id, key_id, lock=lock)
    if key is None:
        raise NotFound(f"no key has the id {key_id!r} in this project", param="key_id")
    return key


def _changeable(session: Session, grantor: Grantor, key_id: str) -> ApiKey:
    key = get_key(session, grantor.project_id, key_id, lock=True)
    _check_not_stronger(grantor, key)
    return key


def _check_not_stronger(grantor: Grantor, key: ApiKey) -> None:
    beyond = scopes_of(key) - grantor.scopes
    if beyond:
        raise PermissionDenied(
            f"the key may do what yours may not: {_join(beyond)}; only one that may do this too can make, rotate or"
            " revoke it"
        )


def _bound(grantor: Grantor, expires_at: datetime | None) -> datetime | None:
    if grantor.expires_at is None:
        return expires_at
    return grantor.expires_at if expires_at is None else min(expires_at, grantor.expires_at)


def _join(scopes: Iterable[Scope]) -> str:
    return ", ".join(sorted(repr(scope.value) for scope in scopes))
