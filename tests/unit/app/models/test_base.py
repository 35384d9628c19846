"""Types of columns, identifiers, and the database's clock."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import Column, Engine, MetaData, Table, insert, select
from sqlalchemy.exc import StatementError

from app.database import open_engine
from app.models.base import UtcDateTime, new_id, now_ms

TIMES = Table("times", MetaData(), Column("at", UtcDateTime()))


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[Engine]:
    """An engine on a database with one column of times."""
    engine = open_engine(empty_database_url)
    TIMES.create(engine)
    yield engine
    engine.dispose()


class TestUtcDateTime:
    def test_any_zone_comes_back_as_utc(self, engine: Engine) -> None:
        written = datetime(2026, 3, 29, 3, 30, 15, 123456, tzinfo=timezone(timedelta(hours=2)))
        with engine.connect() as connection:
            connection.execute(insert(TIMES).values(at=written))
            found = connection.execute(select(TIMES.c.at)).scalar_one()
        assert found == written
        assert found.tzinfo == UTC

    def test_null_stays_null(self, engine: Engine) -> None:
        with engine.connect() as connection:
            connection.execute(insert(TIMES).values(at=None))
            assert connection.execute(select(TIMES.c.at)).scalar_one() is None

    def test_naive_time_is_refused(self, engine: Engine) -> None:
        with engine.connect() as connection, pytest.raises(StatementError, match="has no time zone"):
            connection.execute(insert(TIMES).values(at=datetime(2026, 1, 1)))  # noqa: DTZ001


class TestNowMs:
    def test_is_the_time_in_milliseconds(self, engine: Engine) -> None:
        with engine.connect() as connection:
            before = time.time() * 1000
            found = connection.execute(select(now_ms())).scalar_one()
        assert isinstance(found, int)
        assert abs(found - before) < 60_000

    def test_moves_within_one_transaction(self, engine: Engine) -> None:
        # PostgreSQL's now() stands still from the beginning of a transaction; a lease must not.
        with engine.connect() as connection:
            first = connection.execute(select(now_ms())).scalar_one()
            deadline = time.monotonic() + 30
            while connection.execute(select(now_ms())).scalar_one() == first:
                assert time.monotonic() < deadline
                time.sleep(0.002)

    def test_can_be_calculated_with(self, engine: Engine) -> None:
        with engine.connect() as connection:
            assert connection.execute(select((now_ms() + 60_000) > now_ms())).scalar_one()


class TestNewId:
    def test_tells_its_kind_and_is_never_the_same(self) -> None:
        made = {new_id("ftjob-") for _ in range(1000)}
        assert len(made) == 1000
        assert all(each.startswith("ftjob-") and each[6:].isalnum() and len(each) == 30 for each in made)
