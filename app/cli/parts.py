"""Commands that run, prepare and examine the parts of an installation."""

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import Home, database_of, settings_of
from app.cli.output import Json, out, print_json, print_table
from app.errors import ConfigurationError
from app.settings import load_settings, make_home

if TYPE_CHECKING:
    import threading

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)]


def serve(home: Home = None, host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Run API, reconciler, webhooks, notary and workers together, with all state in one folder."""
    from app.serve import serve as run

    run(settings_of(home), host, port)


def api(home: Home = None, host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Run the API alone."""
    from app.domain.safety_policy import load_policy
    from app.serve import prepare, run_api

    settings = settings_of(home)
    load_policy(settings.policy_file)
    made_key = prepare(settings)
    if made_key is not None:
        out.print(f"API key of the administrator, shown only now: {made_key}")
    run_api(settings, host, port)


def reconciler(home: Home = None) -> None:
    """Run the reconciler alone, which also lets jobs whose record is signed have succeeded."""
    import threading

    from app.reconciler import run_reconciler
    from app.work.release import run_releases

    settings = settings_of(home)
    with database_of(settings) as database:
        stop = stopped_by_signals()
        releases = threading.Thread(target=run_releases, args=(database, stop), name="releases")
        releases.start()
        run_reconciler(database, settings, stop)
        releases.join()


def stopped_by_signals() -> "threading.Event":
    """Return what SIGTERM and Ctrl-C set from now on."""
    import signal
    import threading

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def worker(home: Home = None, queue: Annotated[str, typer.Option(help="gpu or cpu.")] = "gpu") -> None:
    """Run the worker of one queue."""
    from importlib.util import find_spec

    from sqlalchemy.exc import OperationalError

    from app import storage
    from app.database import open_engine
    from app.migration import check_schema

    if find_spec("worker") is None:
        raise ConfigurationError("this installation is the API's and has no worker; use the worker image")
    settings = load_settings(home=home)
    make_home(settings)
    storage.prepare(settings.storage)
    engine = open_engine(settings.database_url)
    # A database that is away is waited for; one of another version would fail at every knock.
    with contextlib.suppress(OperationalError):
        check_schema(engine)
    engine.dispose()
    environment = settings.child_environment()
    # The worker replaces this process, so that signals reach it and no torch is ever loaded here.
    os.execve(sys.executable, [sys.executable, "-m", "worker.celery_app", "--queue", queue], environment)


def migrate(home: Home = None, as_json: Json = False) -> None:
    """Bring the database to the current schema."""
    from app.database import open_engine
    from app.migration import migrate as upgrade
    from app.migration import newest_revision

    settings = settings_of(home)
    make_home(settings)
    engine = open_engine(settings.database_url)
    try:
        upgrade(engine)
    finally:
        engine.dispose()
    if as_json:
        print_json({"revision": newest_revision()})
    else:
        out.print(f"the database is at revision {newest_revision()}")


def grants(
    prefix: Annotated[str, typer.Option(help="What the names of the roles begin with.")] = "tether",
    schema: Annotated[str, typer.Option(help="Schema of the tables.")] = "public",
    as_json: Json = False,
) -> None:
    """Print the SQL that gives API, worker and notary a role of their own on PostgreSQL: tether grants | psql URL"""
    from app.grants import format_grants

    statements = format_grants(prefix, schema)
    if as_json:
        print_json({"sql": statements})
    else:
        sys.stdout.write(statements)


def doctor(home: Home = None, as_json: Json = False) -> None:
    """Say what works here and what to do about what does not."""
    from dataclasses import asdict

    from app.doctor import examine

    findings = examine(load_settings(home=home))
    if as_json:
        print_json({"object": "list", "data": [asdict(finding) for finding in findings]})
    else:
        print_table(
            ("what", "found", "verdict"), [(each.what, each.found, each.todo or "ok") for each in findings]
        )
    raise typer.Exit(int(any(finding.todo is not None for finding in findings)))
