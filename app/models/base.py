"""What every table shares: names of constraints, types of columns, identifiers, and the database's clock."""

import secrets
import string
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, MetaData, String, TypeDecorator
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.functions import FunctionElement

_ALPHABET = string.ascii_letters + string.digits

ID = String(64)
NAME = String(255)
DIGEST = String(64)
"""SHA-256 in hexadecimal."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time on both databases; SQLite itself keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times and convert the rest to UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of every table. Names of constraints come from here, so that migrations never invent them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy reads a plain class attribute.)
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[Any]: JSON,
        int: BigInteger,
    }


class now_ms(FunctionElement[int]):  # noqa: N801  (It reads as the SQL function that it is.)
    """Milliseconds since 1970 by the database's clock, the only clock that judges leases."""

    inherit_cache = True
    type = BigInteger()


@compiles(now_ms, "postgresql")
def _now_ms_postgresql(*_: object, **__: object) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


@compiles(now_ms, "sqlite")
def _now_ms_sqlite(*_: object, **__: object) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


def utc_now() -> datetime:
    """Return this process's time, for columns that people read."""
    return datetime.now(UTC)


def new_id(prefix: str) -> str:
    """Return a random identifier of 24 letters and digits behind a prefix that tells its kind."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(24))
