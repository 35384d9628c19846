"""The body of a job as options and files say it, for the commands that send one."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.output import clean, err

if TYPE_CHECKING:
    from app.cli.client import Server

OBJECT = "JSON, or @FILE that holds it."

ValidationFile = Annotated[
    str | None,
    typer.Option(metavar="ID|PATH", help="The same, for validation.", show_default=False),
]
Safety = Annotated[
    str | None,
    typer.Option(
        metavar="PRESET|JSON|@FILE",
        help="How the model is protected: a preset's name (default, paper, strict, off) or an object.",
        show_default=False,
    ),
]
Training = Annotated[
    str | None, typer.Option(metavar="JSON|@FILE", help="Further training options.", show_default=False)
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", "--n-epochs", help="Passes over the data. Default: auto.", show_default=False),
]
BatchSize = Annotated[int | None, typer.Option(help="Rows per step. Default: auto.", show_default=False)]
Multiplier = Annotated[
    float | None, typer.Option(help="Factor on the learning rate. Default: auto.", show_default=False)
]
Metadata = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="A label; may be given again.", show_default=False),
]
Integrations = Annotated[
    list[str] | None,
    typer.Option(
        "--integration",
        "--integrations",
        metavar="JSON|@FILE",
        help="Where else the job is shown: an object of OpenAI's `integrations`, or a list of them; may be given again.",
        show_default=False,
    ),
]


def build_method(
    epochs: int | None, batch_size: int | None, learning_rate_multiplier: float | None
) -> dict[str, Any] | None:
    """Return the `method` of a request; None where every hyperparameter is left open."""
    hyperparameters = {
        "n_epochs": epochs,
        "batch_size": batch_size,
        "learning_rate_multiplier": learning_rate_multiplier,
    }
    chosen = {name: value for name, value in hyperparameters.items() if value is not None}
    return {"type": "supervised", "supervised": {"hyperparameters": chosen}} if chosen else None


def read_safety(text: str | None) -> Any:
    """Return the `safety` of a request: a preset's name, or an object. Raises typer.BadParameter."""
    if text is None or text.lstrip().startswith(("{", "@")):
        return read_object("--safety", text)
    return text


def read_object(option: str, text: str | None) -> dict[str, Any] | None:
    """Return the JSON object of an option or of the file that it names. Raises typer.BadParameter."""
    if text is None:
        return None
    value = _read_json(option, text)
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{option} is not a JSON object")
    return value


def read_integrations(texts: list[str] | None) -> list[dict[str, Any]] | None:
    """Return the `integrations` of a request, in their order. Raises typer.BadParameter."""
    found: list[dict[str, Any]] = []
    for text in texts or ():
        value = _read_json("--integration", text)
        several = value if isinstance(value, list) else [value]
        if not all(isinstance(each, dict) for each in several):
            raise typer.BadParameter("--integration is neither a JSON object nor a list of them")
        found += several
    return found if texts else None


def _read_json(option: str, text: str) -> Any:
    try:
        return json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except (OSError, ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{option} cannot be read: {error}. Expected: {OBJECT}") from None


def read_metadata(pairs: list[str] | None) -> dict[str, str] | None:
    """Return the labels of `KEY=VALUE` options. Raises typer.BadParameter."""
    for pair in pairs or ():
        if "=" not in pair or pair.startswith("="):
            raise typer.BadParameter(f"--metadata: {pair!r} is not of the form KEY=VALUE")
    return {pair.partition("=")[0]: pair.partition("=")[2] for pair in pairs} if pairs else None


def without_none(body: dict[str, Any]) -> dict[str, Any]:
    """Return what was said of a body."""
    return {name: value for name, value in body.items() if value is not None}


def send_files(server: "Server", body: dict[str, Any], *, wait: bool = False) -> dict[str, Any]:
    """Return a body with ids for the local files that it names, which are uploaded, and checked where `wait` says so."""
    given = {name: body[name] for name in ("training_file", "validation_file") if name in body}
    return {**body, **{name: _find_or_upload(server, name, str(file), wait) for name, file in given.items()}}


def _find_or_upload(server: "Server", field: str, given: str, wait: bool) -> str:
    if given.startswith("file-"):
        return given
    path = Path(given)
    if not path.is_file():
        option = f"--{field.replace('_', '-')}"
        raise typer.BadParameter(f"{option}: {given} is neither the id of a file nor a file here")
    from app.cli.files import wait_until_checked
    from app.cli.transfer import upload

    file = upload(server, path, "fine-tune")
    err.print(f"uploaded {clean(path.name)} as {clean(file['id'])}")
    uploaded: str = (wait_until_checked(server, file) if wait else file)["id"]
    return uploaded
