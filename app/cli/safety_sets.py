"""tether anchors and tether alignment"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import A_FILE, Base, Home, database_of, settings_of
from app.cli.output import Json, out, print_json, print_list, show_time

if TYPE_CHECKING:
    from app.models.safety_set import SetKind

anchors = typer.Typer(no_args_is_help=True, help="Requests to which fine-tuned models stay as they were.")
alignment = typer.Typer(no_args_is_help=True, help="Data that some methods train on beside the user's.")


class AlignmentKind(StrEnum):
    """What the replies of alignment data are."""

    SAFE = "safe"
    HARMFUL = "harmful"


@anchors.command("add")
def add_anchors(
    base: Base,
    data: Annotated[
        Path,
        typer.Option(
            help='JSON lines, 8 to 256, each {"messages": [{"role": "user", "content": "…"}]}', **A_FILE
        ),
    ],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Register anchors of a base model and make them the ones that new jobs use."""
    add_set(home, "anchors", base, data, as_json=as_json)


@anchors.command("list")
def list_anchors(home: Home = None, as_json: Json = False) -> None:
    """List the anchors, newest first."""
    list_sets(home, "anchors", as_json=as_json)


@alignment.command("add")
def add_alignment(
    base: Base,
    data: Annotated[Path, typer.Option(help="JSON lines, as training files are.", **A_FILE)],
    kind: Annotated[
        AlignmentKind,
        typer.Option(help="safe: replies as they should be. harmful: replies as they should not."),
    ],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Register alignment data of a base model and make it the one that new jobs use."""
    add_set(home, "alignment" if kind is AlignmentKind.SAFE else "harmful", base, data, as_json=as_json)


@alignment.command("list")
def list_alignment(home: Home = None, as_json: Json = False) -> None:
    """List the alignment data, newest first."""
    list_sets(home, "alignment", "harmful", as_json=as_json)


def add_set(home: Path | None, kind: "SetKind", base: str, data: Path, *, as_json: bool) -> None:
    """Register a local file as a safety set."""
    from app.base_models.service import find_base_model
    from app.database import unit_of_work
    from app.safety_sets import service
    from app.safety_sets.schemas import set_to_wire

    settings = settings_of(home)
    with database_of(settings) as database:
        with data.open("rb") as file:
            rows = service.store_rows(settings, kind, file)
        with unit_of_work(database) as session:
            added = service.add_set(session, find_base_model(session, base), kind, rows)
        if as_json:
            print_json(set_to_wire(added))
            return
        out.print(f"registered {added.id} ({added.rows} rows, kind {kind}) for {base}; new jobs on it use it")


def list_sets(home: Path | None, *kinds: "SetKind", as_json: bool) -> None:
    """Print the safety sets of some kinds."""
    from app.database import read_only
    from app.safety_sets import repository
    from app.safety_sets.schemas import set_to_wire

    with database_of(settings_of(home)) as database, read_only(database) as session:
        found = [set_to_wire(each) for each in repository.list_sets(session, kinds=kinds)]
    if as_json:
        print_json({"object": "list", "data": found})
        return
    print_list(
        ("id", "base model", "kind", "rows", "SHA-256", "registered at"),
        [
            (
                each["id"],
                each["model"],
                each["kind"],
                each["rows"],
                each["sha256"][:12],
                show_time(each["created_at"]),
            )
            for each in found
        ],
        empty=f"no {'anchors' if 'anchors' in kinds else 'alignment data'} yet; the command add registers some",
    )
