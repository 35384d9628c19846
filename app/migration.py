"""Bringing the database to the current schema with Alembic."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from app.errors import ConfigurationError
from app.seat_belts import are_fastened, fasten, unfasten

SCRIPTS = Path(__file__).resolve().parents[1] / "migrations"


def alembic_config() -> Config:
    """Return Alembic's configuration; the migrations lie beside the package."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    return config


def migrate(engine: Engine) -> None:
    """Upgrade to the newest revision in one transaction; where it is there, only put back triggers that are off.

    Raises ConfigurationError, and changes nothing, where a newer version of Tether made the database.
    """
    config = alembic_config()
    with engine.begin() as connection:
        found = current_revision(connection)
        if is_newer(found):
            raise ConfigurationError(f"the database is at revision {found}; {how_to_mend(found)}")
        if found == newest_revision():
            if not are_fastened(connection):
                fasten(connection)
            return
        config.attributes["connection"] = connection
        unfasten(connection)
        command.upgrade(config, "head")
        fasten(connection)


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database."""
    return MigrationContext.configure(connection).get_current_revision()


def is_current(engine: Engine) -> bool:
    """Say whether the database has the schema that the code needs."""
    with engine.connect() as connection:
        return current_revision(connection) == newest_revision()


def check_schema(engine: Engine) -> None:
    """Raise ConfigurationError where the database does not have the schema that the code needs."""
    with engine.connect() as connection:
        found = current_revision(connection)
    if found != newest_revision():
        raise ConfigurationError(
            f"the database is at revision {found}, and this version needs {newest_revision()}; {how_to_mend(found)}"
        )


def newest_revision() -> str | None:
    """Return the revision that the code needs."""
    return ScriptDirectory.from_config(alembic_config()).get_current_head()


def is_newer(revision: str | None) -> bool:
    """Say whether a database at this revision was made by a newer version than this one, which does not know it."""
    known = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    return revision is not None and revision not in {script.revision for script in known}


def how_to_mend(revision: str | None) -> str:
    """Return what to do about a database that is at another revision than the code needs."""
    if is_newer(revision):
        return (
            "a newer version of Tether made it, which this one cannot read: install that version, or restore the"
            " backup from before its upgrade"
        )
    return "run: tether migrate"
