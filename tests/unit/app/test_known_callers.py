"""Callers that are kept for a moment: how long at most, and which never."""

import asyncio
import time
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event

from app.auth import Found, Known, read_digest
from app.database import Database, open_engine, unit_of_work
from app.domain.scopes import Role
from app.errors import NotAuthenticated
from app.keys.service import OPERATOR_AT_THE_MACHINE, NewKey, add_key, revoke_key
from app.known_callers import KEPT_S, KnownCallers
from app.models.base import Base, utc_now


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """An empty database."""
    engine = open_engine(f"sqlite:///{tmp_path / 'tether.db'}")
    Base.metadata.create_all(engine)
    return Database(engine, lambda knocks: None)


def make_key(database: Database, *, used: bool = True, lasts: timedelta | None = None) -> NewKey:
    """Add a key, by default one whose use was just noted."""
    with unit_of_work(database) as session:
        made = add_key(session, name="key", role=Role.MEMBER, expires_at=lasts and utc_now() + lasts)
        made.row.last_used_at = utc_now() if used else None
    return made


async def ask(callers: KnownCallers, made: NewKey) -> Found | None:
    return await callers.get(read_digest(f"Bearer {made.secret}"))


def count_reads(database: Database) -> list[str]:
    """Return a list to which every query is added."""
    statements: list[str] = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda _c, _u, statement, *_: statements.append(statement) if "SELECT" in statement else None,
    )
    return statements


def test_one_that_asks_again_is_not_read_again(database: Database) -> None:
    made, callers = make_key(database), KnownCallers(database)
    reads = count_reads(database)

    async def run() -> list[Found | None]:
        return [await ask(callers, made) for _ in range(5)]

    found = asyncio.run(run())
    assert len(reads) == 1
    assert isinstance(found[0], Known)
    assert found == [found[0]] * 5


def test_revoked_key_opens_nothing_within_a_second(database: Database) -> None:
    assert KEPT_S < 1
    made, callers = make_key(database), KnownCallers(database)

    async def run() -> float:
        assert isinstance(await ask(callers, made), Known)
        # Another process does it: nobody tells this one.
        with unit_of_work(database) as session:
            revoke_key(session, OPERATOR_AT_THE_MACHINE, made.row.id)
        revoked_at = time.monotonic()
        # It is asked for all the time, so that what is kept must not be renewed by being used.
        while isinstance(found := await ask(callers, made), Known):
            assert time.monotonic() < revoked_at + 1
            await asyncio.sleep(0.01)
        assert isinstance(found, NotAuthenticated)
        return time.monotonic() - revoked_at

    assert asyncio.run(run()) < 1


def test_key_ends_at_its_time_though_it_is_kept(database: Database) -> None:
    made, callers = make_key(database, lasts=timedelta(seconds=0.1)), KnownCallers(database)

    async def run() -> tuple[Found | None, Found | None]:
        first = await ask(callers, made)
        await asyncio.sleep(0.11)
        return first, await ask(callers, made)

    first, second = asyncio.run(run())
    assert isinstance(first, Known)
    assert isinstance(second, NotAuthenticated)


def test_key_that_was_not_known_opens_as_soon_as_it_is(database: Database) -> None:
    made, callers = make_key(database), KnownCallers(database)

    async def run() -> tuple[Found | None, Found | None]:
        with unit_of_work(database) as session:
            digest, row = made.row.key_digest, session.merge(made.row)
            row.key_digest = "0" * 64
        before = await ask(callers, made)
        with unit_of_work(database) as session:
            session.merge(made.row).key_digest = digest
        return before, await ask(callers, made)

    before, after = asyncio.run(run())
    assert before is None
    assert isinstance(after, Known)


def test_use_that_is_due_is_asked_for_until_it_is_written_down(database: Database) -> None:
    made, callers = make_key(database, used=False), KnownCallers(database)

    async def run() -> list[bool]:
        due = []
        for _ in range(2):
            found = await ask(callers, made)
            assert isinstance(found, Known)
            due.append(found.use_is_due)
            with unit_of_work(database) as session:
                session.merge(made.row).last_used_at = utc_now()
        return due

    assert asyncio.run(run()) == [True, False]
