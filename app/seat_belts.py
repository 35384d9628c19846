"""Triggers against accidents: what is on record is not changed or dropped, and ended work stays ended.

They are a seat belt and no proof: whoever owns the database can take them off, and what he then changes is found by the
notary and by the verifier. They are no part of a revision but put on after every one, so that no migration loses them with
a table that it rebuilds.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, delete, text
from sqlalchemy.orm import Session

from app.domain.job import TERMINAL
from app.models.attestation import Attestation
from app.models.installation_log import LedgerUnlock, LogCheckpoint, LogEvent, LogHead, LogLeaf
from app.models.job import LedgerLeaf
from app.models.work import Work

LEDGER, WORK, EVENTS = LedgerLeaf.__tablename__, Work.__tablename__, LogEvent.__tablename__
FROZEN = tuple(each.__tablename__ for each in (LogLeaf, LogHead, LogCheckpoint, Attestation))
"""Tables of which nothing is ever changed."""
KEPT = (LEDGER, EVENTS, *FROZEN)
"""Tables of which nothing is ever dropped."""
_ENDED = ", ".join(f"'{state}'" for state in sorted(TERMINAL))


@contextmanager
def pruning(session: Session) -> Iterator[None]:
    """Let this transaction replace leaves of ledgers where they stand, and no other one.

    The flag is a row that nobody else ever sees, because it is gone before the transaction commits.
    """
    session.add(LedgerUnlock(number=1))
    session.flush()
    yield
    session.flush()
    session.execute(delete(LedgerUnlock))


def fasten(connection: Connection) -> None:
    """Put the triggers on, in place of those that are there."""
    unfasten(connection)
    for statement in _statements(connection):
        connection.execute(text(statement))


def are_fastened(connection: Connection) -> bool:
    """Say whether exactly the triggers are on that should be."""
    wanted = {
        found[1] for found in map(re.compile(r"CREATE TRIGGER (\w+)").match, _statements(connection)) if found
    }
    return {name for name, _, is_on in _list_triggers(connection) if is_on} == wanted


def unfasten(connection: Connection) -> None:
    """Take the triggers off, for a migration."""
    for name, table, _ in _list_triggers(connection):
        of = "" if connection.dialect.name == "sqlite" else f' ON "{table}"'
        connection.execute(text(f'DROP TRIGGER "{name}"{of}'))


def _list_triggers(connection: Connection) -> list[tuple[str, str, bool]]:
    """Return name and table of each trigger of ours, and whether it is on; PostgreSQL can have one that is not."""
    if connection.dialect.name == "sqlite":
        names = "SELECT name, tbl_name, 1 FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'tether_%'"
    else:
        names = (
            "SELECT tgname, relname, tgenabled IN ('O', 'A') FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid"
            " WHERE tgname LIKE 'tether_%' AND relnamespace = current_schema()::regnamespace"
        )
    return [(name, table, bool(is_on)) for name, table, is_on in connection.execute(text(names))]


def _statements(connection: Connection) -> Iterator[str]:
    return _sqlite() if connection.dialect.name == "sqlite" else _postgresql()


def _sqlite() -> Iterator[str]:
    def refuse(table: str, what: str, when: str = "") -> str:
        act = what.partition(" ")[0]
        return (
            f"CREATE TRIGGER tether_{table}_{act.lower()} BEFORE {what} ON {table} {when}"
            f" BEGIN SELECT RAISE(ABORT, '{act} of {table} is refused: it is on record'); END"
        )

    for table in KEPT:
        yield refuse(table, "DELETE")
    for table in FROZEN:
        yield refuse(table, "UPDATE")
    yield refuse(EVENTS, "UPDATE OF leaf")
    same_place = "OLD.work_id = NEW.work_id AND OLD.seq = NEW.seq"
    unlocked = "EXISTS (SELECT 1 FROM ledger_unlocks)"
    yield refuse(LEDGER, "UPDATE", f"WHEN NOT ({same_place} AND {unlocked})")
    yield (
        f"CREATE TRIGGER tether_{WORK}_ended BEFORE UPDATE OF state ON {WORK}"
        f" WHEN OLD.state IN ({_ENDED}) AND NEW.state <> OLD.state"
        " BEGIN SELECT RAISE(ABORT, 'work that has ended stays ended'); END"
    )


def _postgresql() -> Iterator[str]:
    yield _function(
        "tether_refuse", "RAISE EXCEPTION '% of % is refused: it is on record', TG_OP, TG_TABLE_NAME;"
    )
    yield _function(
        "tether_refuse_unless_unlocked",
        # By the schema of the table, because a search path is the caller's.
        "EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I.ledger_unlocks)', TG_TABLE_SCHEMA) INTO open;"
        " IF NOT (open AND OLD.work_id = NEW.work_id AND OLD.seq = NEW.seq) THEN"
        " RAISE EXCEPTION '% of % is refused: it is on record', TG_OP, TG_TABLE_NAME; END IF; RETURN NEW;",
        declare="DECLARE open boolean;",
    )
    yield _function("tether_keep_terminal", "RAISE EXCEPTION 'work that has ended stays ended';")
    for table in KEPT:
        yield _trigger(table, "DELETE", "ROW", "tether_refuse")
        yield _trigger(table, "TRUNCATE", "STATEMENT", "tether_refuse")
    for table in FROZEN:
        yield _trigger(table, "UPDATE", "ROW", "tether_refuse")
    yield _trigger(EVENTS, "UPDATE OF leaf", "ROW", "tether_refuse")
    yield _trigger(LEDGER, "UPDATE", "ROW", "tether_refuse_unless_unlocked")
    ended = f"WHEN (OLD.state IN ({_ENDED}) AND NEW.state <> OLD.state)"
    yield _trigger(WORK, "UPDATE OF state", "ROW", "tether_keep_terminal", ended)


def _function(name: str, body: str, *, declare: str = "") -> str:
    return (
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ {declare} BEGIN {body} END $$"
    )


def _trigger(table: str, what: str, level: str, function: str, when: str = "") -> str:
    name = f"tether_{table}_{what.partition(' ')[0].lower()}"
    return f"CREATE TRIGGER {name} BEFORE {what} ON {table} FOR EACH {level} {when} EXECUTE FUNCTION {function}()"
