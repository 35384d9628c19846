"""The migrations build exactly the schema that the code declares."""

from collections.abc import Iterator

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect

from app.database import open_engine
from app.migration import alembic_config, current_revision, migrate, newest_revision
from app.models.base import Base


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on an empty database."""
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


class TestMigrate:
    def test_builds_the_declared_schema(self, engine: Engine) -> None:
        migrate(engine)
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "compare_server_default": True}
            )
            assert compare_metadata(context, Base.metadata) == []
            assert current_revision(connection) == newest_revision()

    def test_again_does_nothing(self, engine: Engine) -> None:
        migrate(engine)
        migrate(engine)
        with engine.connect() as connection:
            assert current_revision(connection) == newest_revision()

    def test_failure_leaves_nothing_behind(self, engine: Engine) -> None:
        # The last table of the first migration is there already, so that it fails near its end.
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE steps (n INTEGER)")
        with pytest.raises(Exception, match="already exists"):
            migrate(engine)
        with engine.connect() as connection:
            assert set(inspect(connection).get_table_names()) == {"steps"}


class TestDowngrade:
    def test_every_step_can_be_undone_and_done_again(self, engine: Engine) -> None:
        migrate(engine)
        config = alembic_config()
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.downgrade(config, "base")
        with engine.connect() as connection:
            assert inspect(connection).get_table_names() == ["alembic_version"]
            assert current_revision(connection) is None
        migrate(engine)
