"""Keys are stored as digests and found again."""

from collections.abc import Iterator

import pytest
from sqlalchemy import select

from app.auth import Caller, authenticate, require_operator
from app.database import Database, open_engine, read_only, unit_of_work
from app.errors import NotAuthenticated, PermissionDenied
from app.keys.service import DEFAULT_PROJECT, MEMBER, OPERATOR, ensure_admin_key, make_key
from app.migration import migrate
from app.models.tenancy import ApiKey
from tests.support import collect


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with the schema and no key."""
    database = Database(open_engine(database_url), collect([]))
    migrate(database.engine)
    yield database
    database.engine.dispose()


def ensure(database: Database, key: str | None) -> str | None:
    """Make sure of a key, in a transaction of its own."""
    with unit_of_work(database) as session:
        return ensure_admin_key(session, key)


class TestMakeKey:
    def test_is_long_and_never_the_same(self) -> None:
        made = {make_key() for _ in range(100)}
        assert len(made) == 100
        assert all(len(key.removeprefix("tether_")) == 32 for key in made)


class TestEnsureAdminKey:
    def test_key_is_made_once(self, database: Database) -> None:
        made = ensure(database, None)
        assert made is not None
        assert ensure(database, None) is None
        assert authenticate(database, f"Bearer {made}").project_id == DEFAULT_PROJECT
        assert authenticate(database, f"Bearer {made}").role == OPERATOR

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


class TestRequireOperator:
    def test_only_the_role_decides(self) -> None:
        require_operator(Caller(project_id="p", key_id="k", role=OPERATOR))
        for role in ({}, {"role": MEMBER}, {"role": ""}, {"role": "Operator"}):
            with pytest.raises(PermissionDenied, match="ask the operator") as caught:
                require_operator(Caller(project_id=DEFAULT_PROJECT, key_id="k", **role))
            assert caught.value.status == 403
