"""tether critics"""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from app.cli.common import Base, Home, Key, MaybeUrl, choose_server, connect, database_of, settings_of
from app.cli.output import (
    Json,
    err,
    get_in,
    make_flag,
    out,
    print_fields,
    print_json,
    print_list,
    show,
    show_time,
)
from app.errors import InvalidTrainingFile, TetherError

if TYPE_CHECKING:
    from app.critics.importers import Label
    from app.critics.schemas import Pooling

MAX_LISTED = 1000
PROBLEMS_SHOWN = 3
"""Of a file of requests: one that lacks labels lacks them in every line."""
SHAPE = (
    'each line is {"messages": […], "label": 0|1, "group": topic}; requests without labels: --data text+1:FILE where all'
    " are harmful, text+0:FILE where none is"
)

group = typer.Typer(
    no_args_is_help=True,
    help="Critics of base models, of the local installation or, with --url, of a server.",
)


@group.command("fit")
def fit_critic(
    base: Base,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[FORMAT:]FILE",
            help="File of labelled requests; may be given again, each in a format of its own, such as"
            " advbench:harmful.csv, or text+1:FILE where all of a file's requests are harmful (text+0: none is).",
        ),
    ] = None,
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help='rows: JSON lines {"messages": […], "label": 0|1, "group": topic}. Or a public set as its authors'
            " publish it: advbench, xstest, jailbreakbench, harmbench. Or text: one request a line. For files that"
            " name none.",
        ),
    ] = "rows",
    label: Annotated[
        int | None,
        typer.Option(
            help="With --format text or jailbreakbench: what the requests are, 1 harmful, 0 not.",
            min=0,
            max=1,
        ),
    ] = None,
    cold_start: Annotated[
        bool, make_flag("--cold-start", "Use the requests that come with Tether, too or alone.")
    ] = False,
    pooling: Annotated[
        str, typer.Option(help="Layers that the critic reads: mean, or the number of one, counted from 1.")
    ] = "mean",
    category: Annotated[
        str,
        typer.Option(
            help="Harm category that the label 1 stands for, such as bias; each has a critic of its own."
        ),
    ] = "harm",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Fit the activation critic of a base model for a harm category and make it the one that new jobs use."""
    import subprocess

    from app.critics.importers import parse_source
    from app.critics.repository import get_critic
    from app.critics.schemas import critic_to_wire, describe_recall, quality_of
    from app.critics.service import describe_rows, gather_requests, request_fit, store_requests
    from app.database import read_only, unit_of_work
    from app.domain.safety_spec import CATEGORY_PATTERN
    from app.work.repository import get_work

    if not data and not cold_start:
        raise typer.BadParameter("give labelled requests with --data FILE, or take ours with --cold-start")
    known = cast("Label | None", label)  # Typer has seen to it.
    layers = read_pooling(pooling)
    if not re.fullmatch(CATEGORY_PATTERN, category):
        raise typer.BadParameter("--category is 1 to 64 of a-z, 0-9, _ and -")
    sources = [parse_source(text, format_name=format_name, label=known) for text in data or ()]
    try:
        rows = gather_requests(sources, cold_start=cold_start)
    except InvalidTrainingFile as error:
        raise shorten_problems(error) from error
    (err if as_json else out).print(describe_rows(rows))
    settings = settings_of(home)
    with database_of(settings) as database:
        stored = store_requests(settings, rows)
        with unit_of_work(database) as session:
            work = request_fit(session, base_name=base, data_sha256=stored, pooling=layers, category=category)
        # The work is done here and now, by the same process that a worker would start for it.
        environment = settings.child_environment()
        command = [sys.executable, "-m", "worker.process", work.id, "--parent", str(os.getpid())]
        subprocess.run(command, env=environment, check=False)
        with read_only(database) as session:
            done = get_work(session, work.id)
            critic = get_critic(session, work.id)
        if critic is None:
            message = done.error["message"] if done and done.error else "see the log above"
            raise TetherError(f"the critic was not fitted: {message}")
        if as_json:
            print_json(critic_to_wire(done, critic, whole=True))
            return
        quality = quality_of(critic)
        out.print(
            f"fitted {critic.id} for {base} ({critic.category}): on held-out groups AUROC {show(quality['auroc'])}, recall"
            f" {describe_recall(critic)}, and {show(quality['tpr_at_1_percent_fpr'])} of what is harmful found at 1 %"
            " false positives"
        )
        if critic.report["warning"] is not None:
            out.print(f"warning: {critic.report['warning']}")


def shorten_problems(error: InvalidTrainingFile) -> InvalidTrainingFile:
    """Return the error of a wrong file with how many problems there are, the first of them, and what was expected."""
    headline, *problems = error.lines()
    if not problems:
        return error
    count = headline.partition(", the first ")[0].removesuffix(":")
    shown = tuple(each.strip() for each in problems[:PROBLEMS_SHOWN])
    first = f", the first {len(shown)} are" if len(problems) > len(shown) else ""
    return InvalidTrainingFile(f"{count}{first}", problems=(*shown, f"→ {SHAPE}"), param=error.param)


@group.command("list")
def list_critics(
    context: typer.Context,
    home: Home = None,
    url: MaybeUrl = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List the fitted critics; with --url (TETHER_URL) a server's, those under way and failed ones too."""
    server_url = choose_server(context, url, home)
    if server_url is None:
        entries, recalls = load_fitted(home)
        found: dict[str, Any] = {"object": "list", "data": entries}
    else:
        with connect(server_url, key) as server:
            found = server.get_all("critics", limit=MAX_LISTED)
        entries = found["data"]
        recalls = [show(get_in(entry, "quality", "recall")) for entry in entries]
    if as_json:
        print_json(found)
        return
    print_list(
        (
            "id",
            "base model",
            "category",
            "AUROC",
            "recall (s > 0)",
            "TPR at 1 % FPR",
            "threshold",
            "status",
            "asked for at",
        ),
        [
            (
                entry["id"],
                entry["model"],
                entry["category"],
                show(get_in(entry, "quality", "auroc")),
                recall,
                show(get_in(entry, "quality", "tpr_at_1_percent_fpr")),
                show(entry["threshold"]),
                entry["status"],
                show_time(entry["created_at"]),
            )
            for entry, recall in zip(entries, recalls, strict=True)
        ],
        empty="no critics yet; fit one with: tether critics fit --base NAME --cold-start (or --data FILE)",
    )


def load_fitted(home: Path | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the critics of the local installation and the recall of each, in words."""
    from app.critics.repository import list_critics as load
    from app.critics.schemas import critic_to_wire, describe_recall
    from app.database import read_only

    with database_of(settings_of(home)) as database, read_only(database) as session:
        fitted = load(session)
        entries = [critic_to_wire(None, critic, whole=False) for critic in fitted]
        return entries, [describe_recall(critic) for critic in fitted]


@group.command("show")
def show_critic(
    context: typer.Context,
    critic_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the critic, as `tether critics list` shows it.")
    ],
    home: Home = None,
    url: MaybeUrl = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show a critic, of the local installation or, with --url (TETHER_URL), of a server; --json has its report."""
    server_url = choose_server(context, url, home)
    if server_url is None:
        critic = load_critic(home, critic_id)
    else:
        with connect(server_url, key) as server:
            critic = server.get("critics", critic_id)
    if as_json:
        print_json(critic)
        return
    print_fields(
        {
            "id": critic["id"],
            "base model": critic["model"],
            "category": critic["category"],
            "status": critic["status"],
            "error": get_in(critic, "error", "message"),
            "layers": critic["pooling"],
            "AUROC": show(get_in(critic, "quality", "auroc")),
            "recall (s > 0)": show(get_in(critic, "quality", "recall")),
            "TPR at 1 % FPR": show(get_in(critic, "quality", "tpr_at_1_percent_fpr")),
            "threshold": show(critic["threshold"]),
            "SHA-256": critic["sha256"],
            "asked for at": show_time(critic["created_at"]),
            "warning": get_in(critic, "report", "warning"),
        }
    )


def load_critic(home: Path | None, critic_id: str) -> dict[str, Any]:
    """Return a critic of the local installation. Raises NotFound."""
    from app.critics.schemas import critic_to_wire
    from app.critics.service import get_entry
    from app.database import read_only

    with database_of(settings_of(home)) as database, read_only(database) as session:
        return critic_to_wire(*get_entry(session, critic_id), whole=True)


def read_pooling(text: str) -> "Pooling":
    """Return the layers that an option names. Raises typer.BadParameter."""
    if text == "mean":
        return "mean"
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise typer.BadParameter("--pooling is mean, or the number of a layer, counted from 1")
