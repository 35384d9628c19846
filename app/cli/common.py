"""What several commands share: options, the settings and database of a local installation, a server."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.errors import ConfigurationError
from app.logs import configure_logs
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from app.cli.client import Server
    from app.database import Database

Home = Annotated[Path | None, typer.Option(help="Folder of all state. Default: TETHER_HOME or .tether")]
A_FILE: dict[str, Any] = {"exists": True, "dir_okay": False, "readable": True}
Base = Annotated[str, typer.Option(help="Name of the base model.")]
DEFAULT_URL = "http://127.0.0.1:8000"
"""Where `tether serve` listens unless told otherwise."""
Url = Annotated[str, typer.Option(envvar="TETHER_URL", help="Address of the server.")]
Key = Annotated[
    str | None,
    typer.Option(
        envvar="TETHER_API_KEY",
        help="API key. Better kept in the variable: other users of this machine can see arguments.",
        show_default=False,
    ),
]
MaybeUrl = Annotated[
    str | None,
    typer.Option(
        envvar="TETHER_URL",
        help="Address of a server to ask. Default: look into the local installation.",
        show_default=False,
    ),
]


def settings_of(home: Path | None) -> Settings:
    """Read the settings and set up the log of a command that keeps running or writes."""
    settings = load_settings(home=home)
    configure_logs(settings.log_format)
    return settings


@contextmanager
def database_of(settings: Settings) -> Iterator["Database"]:
    """Open the database for one command. Raises ConfigurationError where it was never made or is not current."""
    from app.database import Database, open_engine
    from app.migration import current_revision, how_to_mend, is_current
    from app.queue import build_publisher

    if not settings.has_data:
        raise ConfigurationError(
            f"{settings.home} holds no Tether data yet; name the right folder with --home or TETHER_HOME, or make it"
            " with: tether serve"
        )
    database = Database(open_engine(settings.database_url), build_publisher(settings))
    try:
        if not is_current(database.engine):
            with database.engine.connect() as connection:
                revision = current_revision(connection)
            raise ConfigurationError(f"the schema of the database is not current; {how_to_mend(revision)}")
        yield database
    finally:
        database.engine.dispose()


def connect(url: str, key: str | None) -> AbstractContextManager["Server"]:
    """Open a client of a server."""
    from app.cli import client

    return client.connect(url, key)


def announce_place(url: str | None, home: Path | None) -> None:
    """Say on standard error which installation a command with both --url and --home is about."""
    from app.cli.output import clean, err

    where = (
        f"at the server {url}"
        if url is not None
        else f"in the local installation {load_settings(home=home).home}"
    )
    err.print(clean(where))


def choose_server(context: typer.Context, url: str | None, home: Path | None) -> str | None:
    """Return the server that a command with both --url and --home asks; None where it looks into the installation.

    --home goes before TETHER_URL, being said now. Raises typer.BadParameter where both options are given.
    """
    if home is None:
        return url
    source = context.get_parameter_source("url")
    if source is not None and source.name == "COMMANDLINE":
        raise typer.BadParameter("give --url for a server or --home for a local installation, not both")
    return None
