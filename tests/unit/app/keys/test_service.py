"""Keys are stored as digests and found again."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, select

from app.auth import Caller, authenticate, require
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.scopes import SCOPES_OF, Role, Scope
from app.errors import (
    ConfigurationError,
    Conflict,
    InvalidRequest,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
)
from app.keys.repository import list_keys
from app.keys.secret import make_secret
from app.keys.service import (
    DEFAULT_PROJECT,
    OPERATOR_AT_THE_MACHINE,
    Grantor,
    add_key,
    ensure_admin_key,
    grant_key,
    revoke_key,
    rotate_key,
    scopes_of,
)
from app.models.base import utc_now
from app.models.tenancy import ApiKey
from tests.support import collect


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with the schema and no key."""
    database = Database(open_engine(database_url), collect([]))
    yield database
    database.engine.dispose()


def ensure(database: Database, key: str | None) -> str | None:
    """Make sure of a key, in a transaction of its own."""
    with unit_of_work(database) as session:
        return ensure_admin_key(session, key)


class TestEnsureAdminKey:
    def test_key_is_made_once(self, database: Database) -> None:
        made = ensure(database, None)
        assert made is not None
        assert ensure(database, None) is None
        assert authenticate(database, f"Bearer {made}").project_id == DEFAULT_PROJECT
        assert authenticate(database, f"Bearer {made}").role == Role.OPERATOR

    def test_given_key_is_added_once_beside_others(self, database: Database) -> None:
        made = ensure(database, None)
        for _ in range(2):
            assert ensure(database, "chosen-by-the-operator") is None
        for key in (made, "chosen-by-the-operator"):
            assert authenticate(database, f"Bearer {key}").project_id == DEFAULT_PROJECT
        with read_only(database) as session:
            assert len(session.scalars(select(ApiKey)).all()) == 2

    def test_only_the_digest_is_stored(self, database: Database) -> None:
        made = ensure(database, None)
        assert made is not None
        with read_only(database) as session:
            stored = session.scalars(select(ApiKey)).one()
            assert made not in {str(getattr(stored, column.name)) for column in ApiKey.__table__.columns}

    def test_key_of_a_member_does_not_stand_for_it(self, database: Database) -> None:
        with unit_of_work(database) as session:
            add_key(session, name="ada", role=Role.MEMBER)
        made = ensure(database, None)
        assert made is not None
        assert authenticate(database, f"Bearer {made}").role == Role.OPERATOR
        assert ensure(database, None) is None


class TestAddKey:
    @pytest.mark.parametrize("role", [Role.MEMBER, Role.OPERATOR])
    def test_key_has_its_role(self, database: Database, role: Role) -> None:
        with unit_of_work(database) as session:
            made = add_key(session, name="ada", role=role).secret
        caller = authenticate(database, f"Bearer {made}")
        assert (caller.role, caller.project_id) == (role, DEFAULT_PROJECT)
        with read_only(database) as session:
            (kept,) = list_keys(session, None)
            assert (kept.name, kept.role, kept.id) == ("ada", role, caller.key_id)
            assert kept.key_digest != made

    @pytest.mark.parametrize("name", ["", "  ", "a" * 256])
    def test_name_must_be_one(self, database: Database, name: str) -> None:
        with pytest.raises(InvalidRequest, match="1 to 255") as caught, unit_of_work(database) as session:
            add_key(session, name=name, role=Role.MEMBER)
        assert caught.value.param == "name"
        with read_only(database) as session:
            assert list_keys(session, None) == []

    def test_list_has_the_newest_first(self, database: Database) -> None:
        for name in ("ada", "bob"):
            with unit_of_work(database) as session:
                add_key(session, name=name, role=Role.MEMBER)
        with read_only(database) as session:
            assert [each.name for each in list_keys(session, None)] == ["bob", "ada"]


class TestAuthenticate:
    @pytest.mark.parametrize(
        ("header", "message"),
        [
            (None, "no API key was given"),
            ("", "no API key was given"),
            ("Bearer", "no API key was given"),
            ("Bearer   ", "no API key was given"),
            ("Basic dXNlcjpwYXNz", "no API key was given"),
            ("Bearer wrong", "not known"),
            ("Bearer \xff\x00", "not known"),
            ("Bearer ' OR 1=1 --", "not known"),
            ("Bearer " + "x" * 100_000, "not known"),
        ],
    )
    def test_anything_else_is_refused(self, database: Database, header: str | None, message: str) -> None:
        ensure(database, "right")
        with pytest.raises(NotAuthenticated, match=message) as caught:
            authenticate(database, header)
        assert caught.value.status == 401
        assert "right" not in caught.value.message

    def test_digest_is_no_key(self, database: Database) -> None:
        ensure(database, "right")
        with read_only(database) as session:
            digest = session.scalars(select(ApiKey.key_digest)).one()
        with pytest.raises(NotAuthenticated):
            authenticate(database, f"Bearer {digest}")

    def test_scheme_is_read_in_any_case(self, database: Database) -> None:
        ensure(database, "right")
        assert authenticate(database, "bearer right") == authenticate(database, "BEARER  right ")


class TestRequire:
    def test_only_the_scopes_decide(self) -> None:
        operator = Caller(project_id="p", key_id="k", role=Role.OPERATOR, scopes=SCOPES_OF[Role.OPERATOR])
        require(operator, Scope.ADMIN)
        for caller in (
            Caller(project_id=DEFAULT_PROJECT, key_id="k"),
            Caller(project_id=DEFAULT_PROJECT, key_id="k", role=Role.OPERATOR, scopes=frozenset()),
        ):
            with pytest.raises(PermissionDenied, match=r"'admin'.*ask the operator") as caught:
                require(caller, Scope.ADMIN)
            assert caught.value.status == 403


class TestScopes:
    def test_each_role_has_what_the_one_below_has(self) -> None:
        member, owner, operator = (SCOPES_OF[role] for role in (Role.MEMBER, Role.OWNER, Role.OPERATOR))
        assert member < owner < operator == frozenset(Scope)
        assert not member & {Scope.ADMIN, Scope.CRITICS_WRITE, Scope.KEYS_WRITE, Scope.KEYS_READ}
        assert not owner & {Scope.ADMIN, Scope.CRITICS_WRITE}

    def test_key_has_fewer_where_it_says_so(self, database: Database) -> None:
        with unit_of_work(database) as session:
            made = add_key(session, name="ci", role=Role.MEMBER, scopes=[Scope.JOBS_READ])
            assert scopes_of(made.row) == {Scope.JOBS_READ}
        assert authenticate(database, f"Bearer {made.secret}").scopes == {Scope.JOBS_READ}

    @pytest.mark.parametrize(
        ("scopes", "message"), [([Scope.ADMIN], "does not have 'admin'"), ([], "at least one")]
    )
    def test_more_than_the_role_or_nothing_is_refused(
        self, database: Database, scopes: list[Scope], message: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=message) as caught, unit_of_work(database) as session:
            add_key(session, name="x", role=Role.OWNER, scopes=scopes)
        assert caught.value.param == "scopes"


class TestEnd:
    def test_expired_key_opens_nothing(self, database: Database) -> None:
        with unit_of_work(database) as session:
            made = add_key(session, name="x", role=Role.MEMBER)
            made.row.expires_at = utc_now() - timedelta(seconds=1)
        with pytest.raises(NotAuthenticated, match="expired on"):
            authenticate(database, f"Bearer {made.secret}")

    def test_revoked_key_opens_nothing_from_then_on(self, database: Database) -> None:
        with unit_of_work(database) as session:
            made = add_key(session, name="x", role=Role.MEMBER)
        assert authenticate(database, f"Bearer {made.secret}").key_id == made.row.id
        with unit_of_work(database) as session:
            first = revoke_key(session, OPERATOR_AT_THE_MACHINE, made.row.id).revoked_at
        with pytest.raises(NotAuthenticated, match="was revoked"):
            authenticate(database, f"Bearer {made.secret}")
        with unit_of_work(database) as session:
            assert revoke_key(session, OPERATOR_AT_THE_MACHINE, made.row.id).revoked_at == first

    def test_operator_whose_only_key_is_revoked_gets_a_new_one_at_the_start(self, database: Database) -> None:
        made = ensure(database, None)
        assert made is not None
        with unit_of_work(database) as session:
            revoke_key(session, OPERATOR_AT_THE_MACHINE, authenticate(database, f"Bearer {made}").key_id)
        again = ensure(database, None)
        assert again is not None
        assert authenticate(database, f"Bearer {again}").role == Role.OPERATOR

    def test_given_key_that_was_revoked_or_is_damaged_is_an_error(self, database: Database) -> None:
        ensure(database, "chosen")
        with unit_of_work(database) as session:
            revoke_key(session, OPERATOR_AT_THE_MACHINE, authenticate(database, "Bearer chosen").key_id)
        with pytest.raises(ConfigurationError, match="was revoked"):
            ensure(database, "chosen")
        with pytest.raises(ConfigurationError, match="checksum is wrong"):
            ensure(database, make_secret("key_12345678")[:-1])

    def test_use_is_noted_coarsely(self, database: Database) -> None:
        with unit_of_work(database) as session:
            made = add_key(session, name="x", role=Role.MEMBER)

        def last_used() -> datetime | None:
            with read_only(database) as session:
                return session.get_one(ApiKey, made.row.id).last_used_at

        assert last_used() is None
        authenticate(database, f"Bearer {made.secret}")
        first = last_used()
        assert first is not None
        authenticate(database, f"Bearer {made.secret}")
        assert last_used() == first
        with unit_of_work(database) as session:
            session.get_one(ApiKey, made.row.id).last_used_at = first - timedelta(minutes=11)
        authenticate(database, f"Bearer {made.secret}")
        assert (last_used() or first) > first

    def test_damaged_key_is_turned_away_without_a_look(self, database: Database) -> None:
        queries: list[str] = []
        event.listen(database.engine, "before_cursor_execute", lambda *found: queries.append(found[2]))
        for bad in (make_secret("key_12345678")[:-1] + "!", make_secret("key_12345678") + "0", "ftk_junk"):
            with pytest.raises(NotAuthenticated, match="checksum is wrong"):
                authenticate(database, f"Bearer {bad}")
        assert queries == []
        with pytest.raises(NotAuthenticated, match="not known"):
            authenticate(database, f"Bearer {make_secret('key_12345678')}")
        assert queries != []


class TestRotate:
    def test_both_open_for_a_while_and_the_new_one_may_do_the_same(self, database: Database) -> None:
        with unit_of_work(database) as session:
            old = add_key(session, name="ci", role=Role.OWNER, scopes=[Scope.JOBS_READ, Scope.KEYS_READ])
        with unit_of_work(database) as session:
            new = rotate_key(session, OPERATOR_AT_THE_MACHINE, old.row.id, overlap=timedelta(hours=1))
        callers = [authenticate(database, f"Bearer {made.secret}") for made in (old, new)]
        assert callers[0].scopes == callers[1].scopes == {Scope.JOBS_READ, Scope.KEYS_READ}
        assert callers[0].project_id == callers[1].project_id
        assert callers[0].expires_at is not None
        assert callers[1].expires_at is None
        with pytest.raises(Conflict, match="was rotated already"), unit_of_work(database) as session:
            rotate_key(session, OPERATOR_AT_THE_MACHINE, old.row.id, overlap=timedelta())

    def test_without_overlap_the_old_one_ends_at_once(self, database: Database) -> None:
        with unit_of_work(database) as session:
            old = add_key(session, name="ci", role=Role.MEMBER)
            rotate_key(session, OPERATOR_AT_THE_MACHINE, old.row.id, overlap=timedelta())
        with pytest.raises(NotAuthenticated, match="expired"):
            authenticate(database, f"Bearer {old.secret}")
        with pytest.raises(Conflict, match="has ended"), unit_of_work(database) as session:
            rotate_key(session, OPERATOR_AT_THE_MACHINE, old.row.id, overlap=timedelta())

    def test_expiry_is_not_put_off_by_the_overlap(self, database: Database) -> None:
        soon = utc_now() + timedelta(minutes=1)
        with unit_of_work(database) as session:
            old = add_key(session, name="ci", role=Role.MEMBER, expires_at=soon)
            new = rotate_key(session, OPERATOR_AT_THE_MACHINE, old.row.id, overlap=timedelta(days=1))
            assert old.row.expires_at == soon
            assert new.row.expires_at is not None
            assert new.row.expires_at - new.row.created_at <= timedelta(minutes=1, seconds=5)


class TestNoKeyGivesMoreThanItHas:
    OWNER = Grantor("key_own", DEFAULT_PROJECT, frozenset({Scope.KEYS_WRITE, Scope.JOBS_READ}), None)

    def grant(self, database: Database, grantor: Grantor, **fields: Any) -> Any:
        with unit_of_work(database) as session:
            given = {"project_id": DEFAULT_PROJECT, "name": "x", "role": Role.MEMBER}
            return grant_key(session, grantor, **{**given, "scopes": None, "expires_at": None, **fields}).row

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"role": Role.OPERATOR},
            {"scopes": [Scope.JOBS_READ, Scope.JOBS_WRITE]},
            {"role": Role.OPERATOR, "scopes": [Scope.ADMIN]},
            {"project_id": "proj_other", "scopes": [Scope.JOBS_READ]},
        ],
    )
    def test_stronger_key_is_refused_and_not_made(self, database: Database, fields: dict[str, Any]) -> None:
        with pytest.raises(PermissionDenied):
            self.grant(database, self.OWNER, **fields)
        with read_only(database) as session:
            assert list_keys(session, None) == []

    def test_as_strong_a_key_is_made(self, database: Database) -> None:
        assert self.grant(database, self.OWNER, scopes=[Scope.JOBS_READ]).scopes == ["jobs:read"]

    def test_key_that_expires_makes_none_that_outlives_it(self, database: Database) -> None:
        soon = utc_now() + timedelta(minutes=1)
        grantor = Grantor("key_own", DEFAULT_PROJECT, SCOPES_OF[Role.OWNER], soon)
        for wanted in (None, soon + timedelta(days=1)):
            assert self.grant(database, grantor, expires_at=wanted).expires_at == soon
        sooner = soon - timedelta(seconds=30)
        assert self.grant(database, grantor, expires_at=sooner).expires_at == sooner

    def test_stronger_key_is_neither_rotated_nor_revoked(self, database: Database) -> None:
        made = ensure(database, None)
        key_id = authenticate(database, f"Bearer {made}").key_id
        for act in (
            lambda session: rotate_key(session, self.OWNER, key_id, overlap=timedelta()),
            lambda session: revoke_key(session, self.OWNER, key_id),
        ):
            with pytest.raises(PermissionDenied), unit_of_work(database) as session:
                act(session)
        assert authenticate(database, f"Bearer {made}").expires_at is None

    def test_key_of_another_project_is_not_found(self, database: Database) -> None:
        made = ensure(database, None)
        key_id = authenticate(database, f"Bearer {made}").key_id
        stranger = Grantor("key_other", "proj_other", frozenset(Scope), None)
        with pytest.raises(NotFound), unit_of_work(database) as session:
            revoke_key(session, stranger, key_id)
