"""tether models"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.canary import ask_canary
from app.cli.common import (
    DEFAULT_URL,
    Home,
    Key,
    MaybeUrl,
    Url,
    choose_server,
    connect,
    database_of,
    settings_of,
)
from app.cli.files import report_download, safe_name
from app.cli.output import Json, out, print_fields, print_json, print_line, print_list, show_time
from app.errors import NotFound

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from app.models.base_model import BaseModel

group = typer.Typer(
    no_args_is_help=True,
    help="Base models of the local installation; with --url, a server's base and fine-tuned models.",
)
Name = Annotated[str, typer.Argument(help="Name of the model, as `tether models list` shows it.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Where to. Default: named after the job, here.", show_default=False),
]
NO_MODELS = "no models yet; its operator registers one with: tether models add NAME FOLDER"


@group.command("add")
def add_model(
    name: Annotated[str, typer.Argument(help="Name that jobs use.")],
    path: Annotated[Path, typer.Argument(help="Local Hugging Face model folder (safetensors only).")],
    revision: Annotated[
        str | None,
        typer.Option(
            help="Which revision of its repository the folder is: a commit or tag.", show_default=False
        ),
    ] = None,
    training_flops: Annotated[
        float | None,
        typer.Option(
            help="Floating-point operations that its training took, as its maker published them, such as 1.5e24.",
            show_default=False,
        ),
    ] = None,
    home: Home = None,
    as_json: Json = False,
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
            base = register_base_model(session, name, path, revision=revision, training_flops=training_flops)
            session.flush()
            added = add_missing_set(session, base, "anchors", generic)
            critic = get_newest_critic(session, base)
            described = describe_base(session, base)
        if as_json:
            print_json(described)
            return
        out.print(
            f"registered {base.name} ({len(base.files)} files, digest {base.digest[:12]}), read from {base.path}"
        )
        if added is not None:
            out.print(f"it has the general anchors ({added.id}, {added.rows} requests)")
        if critic is None:
            out.print(f"next: tether critics fit --base {base.name} --data FILE (or --cold-start)")


@group.command("list")
def list_models(
    context: typer.Context,
    home: Home = None,
    url: MaybeUrl = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List the base models; with --url (TETHER_URL) the models of a server, fine-tuned ones too."""
    server_url = choose_server(context, url, home)
    if server_url is None:
        list_local(home, as_json=as_json)
        return
    with connect(server_url, key) as server:
        found = server.get("models")
    if as_json:
        print_json(found)
        return
    print_list(
        ("name", "owned by", "made at"),
        [(model["id"], model["owned_by"], show_time(model["created"])) for model in found["data"]],
        empty=NO_MODELS,
    )


def list_local(home: Path | None, *, as_json: bool) -> None:
    """List the base models of the local installation."""
    from app.base_models.repository import list_base_models
    from app.database import read_only

    with database_of(settings_of(home)) as database, read_only(database) as session:
        found = [describe_base(session, base) for base in list_base_models(session)]
    if as_json:
        print_json({"object": "list", "data": found})
        return
    print_list(
        ("name", "digest", "critic", "anchors", "path"),
        [
            (
                base["id"],
                base["sha256"][:12],
                base["critic"] or "none",
                base["anchors"] or "none",
                base["path"],
            )
            for base in found
        ],
        empty=NO_MODELS,
    )


def describe_base(session: "Session", base: "BaseModel") -> dict[str, Any]:
    """Return the wire's object of a base model with what only its operator sees."""
    from app.base_models.schemas import base_to_wire
    from app.critics.repository import get_newest_critic
    from app.safety_sets.repository import get_newest_set

    critic = get_newest_critic(session, base)
    anchors = get_newest_set(session, base, "anchors")
    return {
        **base_to_wire(base),
        "sha256": base.digest,
        "revision": base.revision,
        "training_flops": base.training_flops,
        "critic": critic.id if critic else None,
        "anchors": anchors.rows if anchors else None,
        "path": base.path,
    }


@group.command("show")
def show_model(
    context: typer.Context,
    name: Name,
    home: Home = None,
    url: MaybeUrl = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show a base model; with --url (TETHER_URL) any model of a server."""
    server_url = choose_server(context, url, home)
    if server_url is None:
        found = find_local(home, name)
    else:
        with connect(server_url, key) as server:
            found = server.get("models", name)
    if as_json:
        print_json(found)
        return
    shown = {each: value for each, value in found.items() if each not in ("object", "created")}
    print_fields({**shown, "made at": show_time(found["created"])})


def find_local(home: Path | None, name: str) -> dict[str, Any]:
    """Return a base model of the local installation. Raises NotFound."""
    from app.base_models.repository import get_base_model
    from app.database import read_only

    with database_of(settings_of(home)) as database, read_only(database) as session:
        base = get_base_model(session, name)
        if base is None:
            raise NotFound(
                f"no base model of this installation is called {name!r}; a server's models: give --url or TETHER_URL"
            )
        return describe_base(session, base)


@group.command("delete")
def delete_model(name: Name, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """Delete a fine-tuned model of a server, or a checkpoint: its weights go, the record of its job stays."""
    with connect(url, key) as server:
        answer = server.call("DELETE", "models", name)
    if as_json:
        print_json(answer)
    else:
        print_line(f"deleted {answer['id']}")


group.command("canary")(ask_canary)


@group.command("card")
def download_card(
    name: Name, target: Out = None, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Download the model card of a fine-tuned model: one page with its curves, gate, evaluations and auditors' questions."""
    from app.cli.transfer import download

    with connect(url, key) as server:
        model = server.get("models", name)
        if "job" not in model:
            raise NotFound(f"{name!r} is a base model; a model card is of a fine-tuned one")
        place = target or Path(safe_name(f"{model['job']}-model-card.html"))
        sha256 = download(server, ("fine_tuning", "jobs", model["job"], "model_card"), place)
    report_download(place, sha256, as_json=as_json)
