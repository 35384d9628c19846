"""The tether command. Each command imports what it needs when it runs, so that all of them start quickly."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from app.errors import ConfigurationError, TetherError
from app.settings import Settings, load_settings, make_home

if TYPE_CHECKING:
    from app.critics.importers import Label
    from app.database import Database
    from app.models.safety_set import SetKind

WIDTH_OF_A_FILE = 240

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
models = typer.Typer(no_args_is_help=True, help="Base models.")
critics = typer.Typer(no_args_is_help=True, help="Critics of base models.")
anchors = typer.Typer(no_args_is_help=True, help="Requests to which fine-tuned models stay as they were.")
alignment = typer.Typer(no_args_is_help=True, help="Data that some methods train on beside the user's.")
for name, group in (
    ("models", models),
    ("critics", critics),
    ("anchors", anchors),
    ("alignment", alignment),
):
    cli.add_typer(group, name=name)
# Without markup: in «pip install 'tether[worker]'» the brackets are text.
# Where no terminal says how wide it is, a table needs room: an id that is cut in two cannot be copied.
out = Console(
    soft_wrap=True, highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE
)

Home = Annotated[Path | None, typer.Option(help="Folder of all state. Default: TETHER_HOME or .tether")]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)]
A_FILE: dict[str, Any] = {"exists": True, "dir_okay": False, "readable": True}
Base = Annotated[str, typer.Option(help="Name of the base model.")]


class AlignmentKind(StrEnum):
    """What the replies of alignment data are."""

    SAFE = "safe"
    HARMFUL = "harmful"


def main() -> None:
    """Run the command line; an error that Tether raises on purpose is one line and exit code 1."""
    try:
        cli()
    except TetherError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {error.message}", markup=False)
        sys.exit(1)


def settings_of(home: Path | None) -> Settings:
    """Read the settings and set up the log of a command that keeps running or writes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("alembic", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return load_settings(home=home)


@cli.command()
def serve(home: Home = None, host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Run API, reconciler and workers together, with all state in one folder."""
    from app.serve import serve as run

    run(settings_of(home), host, port)


@cli.command()
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


@cli.command()
def reconciler(home: Home = None) -> None:
    """Run the reconciler alone."""
    import signal
    import threading

    from app.reconciler import run_reconciler

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = settings_of(home)
    with database_of(settings) as database:
        run_reconciler(database, settings, stop)


@cli.command()
def worker(home: Home = None, queue: Annotated[str, typer.Option(help="gpu or cpu.")] = "gpu") -> None:
    """Run the worker of one queue."""
    from importlib.util import find_spec

    from app import storage

    if find_spec("worker") is None:
        raise ConfigurationError("this installation is the API's and has no worker; use the worker image")
    settings = load_settings(home=home)
    make_home(settings)
    storage.prepare(settings.storage)
    environment = settings.child_environment()
    # The worker replaces this process, so that signals reach it and no torch is ever loaded here.
    os.execve(sys.executable, [sys.executable, "-m", "worker.celery_app", "--queue", queue], environment)


@cli.command()
def migrate(home: Home = None) -> None:
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
    out.print(f"the database is at revision {newest_revision()}")


@models.command("add")
def add_model(
    name: Annotated[str, typer.Argument(help="Name that jobs use.")],
    path: Annotated[Path, typer.Argument(help="Local Hugging Face model folder (safetensors only).")],
    home: Home = None,
) -> None:
    """Register a base model, pinned by the SHA-256 of each of its files, with general anchors if it has none."""
    from app.base_models.service import register_base_model
    from app.critics.repository import get_newest_critic
    from app.database import unit_of_work
    from app.safety_sets.service import GENERIC_ANCHORS, add_missing_set, store_rows

    settings = settings_of(home)
    with database_of(settings) as database:
        with GENERIC_ANCHORS.open("rb") as file:
            generic = store_rows(settings, "anchors", file)
        with unit_of_work(database) as session:
            base = register_base_model(session, name, path)
            session.flush()
            added = add_missing_set(session, base, "anchors", generic)
            critic = get_newest_critic(session, base)
        out.print(
            f"registered {base.name} ({len(base.files)} files, digest {base.digest[:12]}), read from {base.path}"
        )
        if added is not None:
            out.print(f"it has the general anchors ({added.id}, {added.rows} requests)")
        if critic is None:
            out.print(f"next: tether critics fit --base {base.name} --data FILE (or --cold-start)")


@models.command("list")
def list_models(home: Home = None) -> None:
    """List the base models."""
    from app.base_models.repository import list_base_models
    from app.critics.repository import get_newest_critic
    from app.database import read_only
    from app.safety_sets.repository import get_newest_set

    table = Table("name", "digest", "critic", "anchors", "path")
    with database_of(settings_of(home)) as database, read_only(database) as session:
        for base in list_base_models(session):
            critic = get_newest_critic(session, base)
            newest = get_newest_set(session, base, "anchors")
            table.add_row(
                base.name,
                base.digest[:12],
                critic.id if critic else "none",
                str(newest.rows) if newest else "none",
                base.path,
            )
    out.print(table)


@critics.command("fit")
def fit_critic(
    base: Base,
    data: Annotated[
        list[Path] | None, typer.Option(help="File of labelled requests; may be given again.", **A_FILE)
    ] = None,
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help='rows: JSON lines {"messages": […], "label": 0|1, "group": topic}. Or a public set as its authors'
            " publish it: advbench, xstest, jailbreakbench, harmbench. Or text: one request a line.",
        ),
    ] = "rows",
    label: Annotated[
        int | None, typer.Option(help="What the requests of a text are: 1 harmful, 0 not.", min=0, max=1)
    ] = None,
    cold_start: Annotated[
        bool, typer.Option("--cold-start", help="Use the requests that come with Tether, too or alone.")
    ] = False,
    home: Home = None,
) -> None:
    """Fit the activation critic of a base model and make it the one that new jobs use."""
    import subprocess

    from app.critics.repository import get_critic
    from app.critics.schemas import quality_of
    from app.critics.service import gather_requests, request_fit, store_requests
    from app.database import read_only, unit_of_work
    from app.work.repository import get_work

    if not data and not cold_start:
        raise typer.BadParameter("give labelled requests with --data FILE, or take ours with --cold-start")
    known = cast("Label | None", label)  # Typer has seen to it.
    rows = gather_requests(data or (), format_name=format_name, label=known, cold_start=cold_start)
    settings = settings_of(home)
    with database_of(settings) as database:
        stored = store_requests(settings, rows)
        with unit_of_work(database) as session:
            work = request_fit(session, base_name=base, data_sha256=stored)
        # The work is done here and now, by the same process that a worker would start for it.
        environment = settings.child_environment()
        subprocess.run([sys.executable, "-m", "worker.process", work.id], env=environment, check=False)
        with read_only(database) as session:
            done = get_work(session, work.id)
            critic = get_critic(session, work.id)
        if critic is None:
            message = done.error["message"] if done and done.error else "see the log above"
            raise TetherError(f"the critic was not fitted: {message}")
        quality = quality_of(critic)
        out.print(
            f"fitted {critic.id} for {base}: on held-out groups AUROC {show(quality['auroc'])}, recall"
            f" {show(quality['recall'])}, and {show(quality['tpr_at_1_percent_fpr'])} of what is harmful found at 1 %"
            " false positives"
        )


@critics.command("list")
def list_fitted(home: Home = None) -> None:
    """List the critics."""
    from app.critics.repository import list_critics
    from app.critics.schemas import quality_of
    from app.database import read_only

    table = Table("id", "base model", "AUROC", "recall (s > 0)", "TPR at 1 % FPR", "threshold", "fitted at")
    with database_of(settings_of(home)) as database, read_only(database) as session:
        for critic in list_critics(session):
            quality = quality_of(critic)
            table.add_row(
                critic.id,
                critic.base_model,
                show(quality["auroc"]),
                show(quality["recall"]),
                show(quality["tpr_at_1_percent_fpr"]),
                show(critic.threshold),
                f"{critic.created_at:%Y-%m-%d %H:%M} UTC",
            )
    out.print(table)


def show(number: float | None) -> str:
    """Return a figure as tables have it."""
    return "unknown" if number is None else f"{number:.3f}"


@anchors.command("add")
def add_anchors(
    base: Base,
    data: Annotated[
        Path, typer.Option(help='JSON lines: {"messages": […, the user\'s last]}, 8 to 256 rows', **A_FILE)
    ],
    home: Home = None,
) -> None:
    """Register anchors of a base model and make them the ones that new jobs use."""
    add_set(home, "anchors", base, data)


@anchors.command("list")
def list_anchors(home: Home = None) -> None:
    """List the anchors, newest first."""
    list_sets(home, "anchors")


@alignment.command("add")
def add_alignment(
    base: Base,
    data: Annotated[Path, typer.Option(help="JSON lines, as training files are.", **A_FILE)],
    kind: Annotated[
        AlignmentKind,
        typer.Option(help="safe: replies as they should be. harmful: replies as they should not."),
    ],
    home: Home = None,
) -> None:
    """Register alignment data of a base model and make it the one that new jobs use."""
    add_set(home, "alignment" if kind is AlignmentKind.SAFE else "harmful", base, data)


@alignment.command("list")
def list_alignment(home: Home = None) -> None:
    """List the alignment data, newest first."""
    list_sets(home, "alignment", "harmful")


def add_set(home: Path | None, kind: "SetKind", base: str, data: Path) -> None:
    """Register a local file as a safety set."""
    from app.base_models.service import find_base_model
    from app.database import unit_of_work
    from app.safety_sets import service

    settings = settings_of(home)
    with database_of(settings) as database:
        with data.open("rb") as file:
            rows = service.store_rows(settings, kind, file)
        with unit_of_work(database) as session:
            added = service.add_set(session, find_base_model(session, base), kind, rows)
        out.print(f"registered {added.id} ({added.rows} rows, kind {kind}) for {base}; new jobs on it use it")


def list_sets(home: Path | None, *kinds: "SetKind") -> None:
    """Print the safety sets of some kinds."""
    from app.database import read_only
    from app.safety_sets import repository

    table = Table("id", "base model", "kind", "rows", "SHA-256", "registered at")
    with database_of(settings_of(home)) as database, read_only(database) as session:
        for each in repository.list_sets(session, kinds=kinds):
            table.add_row(
                each.id,
                each.base_model,
                each.kind,
                str(each.rows),
                each.sha256[:12],
                f"{each.created_at:%Y-%m-%d %H:%M} UTC",
            )
    out.print(table)


@cli.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="An evidence bundle.", exists=True, dir_okay=False)],
    adapter: Annotated[Path | None, typer.Option(help="The adapter's zip, to be checked against it.")] = None,
    data: Annotated[Path | None, typer.Option(help="The training file, to be checked against it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check an evidence bundle offline. The exit code is 0 where no check failed."""
    from app.domain.verify import verify_bundle

    for given in (adapter, data):
        if given is not None and not given.is_file():
            raise typer.BadParameter(f"{given} is not a file that can be read")
    report = verify_bundle(bundle, adapter=adapter, data=data)
    text = json.dumps(report.to_dict(), indent=2) if as_json else "\n".join(report.lines())
    out.print(text)
    raise typer.Exit(report.exit_code)


@cli.command()
def doctor(home: Home = None) -> None:
    """Say what works here and what to do about what does not."""
    from app.doctor import examine

    table = Table("what", "found", "verdict")
    findings = examine(load_settings(home=home))
    for finding in findings:
        table.add_row(finding.what, finding.found, "ok" if finding.todo is None else finding.todo)
    out.print(table)
    raise typer.Exit(int(any(finding.todo is not None for finding in findings)))


@contextmanager
def database_of(settings: Settings) -> Iterator["Database"]:
    """Open the database for one command. Raises ConfigurationError where it was never made or is not current."""
    from app.database import Database, open_engine
    from app.migration import is_current
    from app.queue import build_publisher

    if not settings.has_data:
        raise ConfigurationError(
            f"{settings.home} holds no Tether data yet; name the right folder with --home or TETHER_HOME, or make it"
            " with: tether serve"
        )
    database = Database(open_engine(settings.database_url), build_publisher(settings))
    try:
        if not is_current(database.engine):
            raise ConfigurationError("the schema of the database is not current; run: tether migrate")
        yield database
    finally:
        database.engine.dispose()
