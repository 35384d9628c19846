"""Bringing the database to the current schema with Alembic."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

SCRIPTS = Path(__file__).resolve().parents[1] / "migrations"


def alembic_config() -> Config:
    """Return Alembic's configuration; the migrations lie beside the package."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    return config


def migrate(engine: Engine) -> None:
    """Upgrade to the newest revision in one transaction; do nothing where it is there."""
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database."""
    return MigrationContext.configure(connection).get_current_revision()


def is_current(engine: Engine) -> bool:
    """Say whether the database has the schema that the code needs."""
    with engine.connect() as connection:
        return current_revision(connection) == newest_revision()


def newest_revision() -> str | None:
    """Return the revision that the code needs."""
    return ScriptDirectory.from_config(alembic_config()).get_current_head()
