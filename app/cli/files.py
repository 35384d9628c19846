"""tether files"""

import re
import time
from enum import StrEnum
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.common import A_FILE, DEFAULT_URL, Key, Url, connect
from app.cli.output import (
    Json,
    clean,
    err,
    get_in,
    make_flag,
    print_fields,
    print_json,
    print_line,
    print_list,
    show_size,
    show_time,
)
from app.errors import TetherError

if TYPE_CHECKING:
    from app.cli.client import Server

POLL_S = 1.0
MAX_ROWS = 1_000_000
"""So many a server leaves out at once."""

group = typer.Typer(no_args_is_help=True, help="Files of a server: training data and results.")
FileId = Annotated[str, typer.Argument(metavar="ID", help="Id of the file, as `tether files list` shows it.")]
Wait = Annotated[bool, make_flag("--wait", "Wait until a large training file has been checked.")]


class Purpose(StrEnum):
    """What a file is for."""

    TRAINING = "fine-tune"
    DATA = "user_data"


class Overlength(StrEnum):
    """What happens to a row that is too long."""

    ERROR = "error"
    TRUNCATE = "truncate"
    DROP = "drop"


@group.command("upload")
def upload_file(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="JSON lines.", **A_FILE)],
    purpose: Annotated[
        Purpose, typer.Option(help="fine-tune: training data. user_data: for critics and safety sets.")
    ] = Purpose.TRAINING,
    wait: Wait = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Upload a file. Whatever is wrong with training data is listed, and then nothing is kept."""
    from app.cli.transfer import upload

    with connect(url, key) as server:
        file = upload(server, path, purpose.value)
        if wait:
            file = wait_until_checked(server, file)
    if as_json:
        print_json(file)
        return
    print_line(f"uploaded {path.name} as {file['id']} ({show_size(file['bytes'])}), {file['status']}")
    if file["status"] == "uploaded":
        print_line(f"it is large and is being checked now; how it went: tether files show {file['id']}")


def wait_until_checked(server: "Server", file: dict[str, Any]) -> dict[str, Any]:
    """Poll a file until it has been checked. Raises TetherError where it cannot be trained on."""
    with err.status("the file is being checked …"):
        while file["status"] == "uploaded":
            time.sleep(POLL_S)
            file = server.get("files", file["id"])
    if file["status"] == "error":
        raise TetherError(f"{file['id']} cannot be trained on: {file.get('status_details')}")
    return file


@group.command("list")
def list_files(
    purpose: Annotated[str | None, typer.Option(help="Only files of this purpose.")] = None,
    limit: Annotated[int, typer.Option(help="How many, the newest first.", min=1)] = 100,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List the project's files, newest first."""
    with connect(url, key) as server:
        found = server.get_all("files", limit=limit, purpose=purpose)
    if as_json:
        print_json(found)
        return
    print_list(
        ("id", "name", "purpose", "size", "status", "uploaded at"),
        [
            (
                file["id"],
                file["filename"],
                file["purpose"],
                show_size(file["bytes"]),
                file["status"],
                show_time(file["created_at"]),
            )
            for file in found["data"]
        ],
        empty=(
            f"no file has the purpose {purpose}; all files: tether files list"
            if purpose
            else "no files yet; send one with: tether files upload FILE"
        ),
    )


@group.command("show")
def show_file(file_id: FileId, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """Show a file and what was found wrong with it."""
    with connect(url, key) as server:
        file = server.get("files", file_id)
    if as_json:
        print_json(file)
        return
    print_fields(
        {
            "id": file["id"],
            "name": file["filename"],
            "purpose": file["purpose"],
            "size": show_size(file["bytes"]),
            "status": file["status"],
            "details": file.get("status_details"),
            "uploaded at": show_time(file["created_at"]),
            "expires at": show_time(file.get("expires_at")),
        }
    )


@group.command("delete")
def delete_file(file_id: FileId, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """Delete a file that no unfinished job needs."""
    with connect(url, key) as server:
        answer = server.call("DELETE", "files", file_id)
    if as_json:
        print_json(answer)
    else:
        print_line(f"deleted {answer['id']}")


@group.command("erase")
def erase_file(
    file_id: FileId,
    yes: Annotated[bool, make_flag("--yes", "Do it. Without it, only what it means is said.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Erase a data file for good: its bytes, what was found of its rows, and the key of their digests on record."""
    if not yes:
        raise typer.BadParameter(
            f"nobody can undo this: what the record says of the rows of {file_id} can never be compared with them again;"
            " say --yes to do it"
        )
    with connect(url, key) as server:
        answer = server.call("POST", "files", file_id, "erase")
    if as_json:
        print_json(answer)
        return
    print_line(f"erased {answer['id']}")
    for name, what in (
        ("same_bytes", "has the same bytes"),
        ("derived_files", "was made of it"),
        ("models", "learnt from it"),
        ("later_models", "went on from a model that did"),
        ("replies_files", "has its rows, or beginnings of them, beside the replies to them"),
    ):
        for other in answer[name]:
            print_line(f"not erased: {other} {what}")


@group.command("download")
def download_file(
    file_id: FileId,
    target: Annotated[
        Path | None, typer.Option("--out", help="Where to. Default: under its own name, here.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Download a file, check its SHA-256, and go on where an earlier try stopped."""
    from app.cli.transfer import download

    with connect(url, key) as server:
        target = target or Path(safe_name(server.get("files", file_id)["filename"]))
        sha256 = download(server, ("files", file_id, "content"), target)
    report_download(target, sha256, as_json=as_json)


@group.command("report")
def report_file(
    file_id: FileId,
    model: Annotated[str, typer.Option(help="Base model that would be trained.")],
    safety: Annotated[str, typer.Option(metavar="PRESET", help="How it would be protected.")] = "default",
    validation_file: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Looked through for rows of this file.", show_default=False),
    ] = None,
    max_seq_length: Annotated[
        int | None, typer.Option(help="Longest row in tokens. Default: auto.", show_default=False)
    ] = None,
    overlength: Annotated[Overlength, typer.Option(help="What happens to longer ones.")] = Overlength.ERROR,
    target: Annotated[
        Path | None,
        typer.Option("--out", help="Write the report as a page (HTML) to a new file.", show_default=False),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show what training on a file would be: rows kept and dropped, lengths, duplicates, the riskiest rows.

    Waits until the server has made it. The exit code is 1 where the file cannot be trained on.
    """
    from app.cli.report import is_good, print_report, wait_for_report

    query = {
        "model": model,
        "safety": safety,
        "validation_file": validation_file,
        "max_seq_length": max_seq_length,
        "overlength": overlength.value,
    }
    with connect(url, key) as server:
        report = wait_for_report(server, file_id, query)
        if target is not None and is_good(report):
            from app.cli.transfer import download

            given = {name: str(value) for name, value in query.items() if value is not None}
            download(server, ("files", file_id, "report"), target, **given, format="html")
    if as_json:
        print_json(report)
    elif target is not None and is_good(report):
        report_download(target, None, as_json=False)
    else:
        print_report(report)
    raise typer.Exit(0 if is_good(report) else 1)


@group.command("exclude")
def exclude_rows(
    file_id: FileId,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Rows to leave out, counted from 0, such as 3,7,20-29.", show_default=False
        ),
    ] = None,
    risk_above: Annotated[
        float | None,
        typer.Option(help="Leave out the rows whose s is above this, from 0 to 1.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="With --risk-above: base model whose critic says it.", show_default=False),
    ] = None,
    run_again: Annotated[
        str | None,
        typer.Option(metavar="JOB", help="Job to run again on what is left.", show_default=False),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a new file without some rows of a training file, and run a job again on it where one is named."""
    if (rows is None) is (risk_above is None):
        raise typer.BadParameter("give either --rows or --risk-above")
    if (risk_above is None) is not (model is None):
        raise typer.BadParameter("--risk-above and --model need each other")
    given = {
        "rows": read_rows(rows),
        "risk_above": risk_above,
        "model": model,
        "run_again": run_again,
    }
    body = {name: value for name, value in given.items() if value is not None}
    with connect(url, key) as server:
        done = server.create("files", file_id, "exclude", body=body)
    if as_json:
        print_json(done)
        return
    file = done["file"]
    count = get_in(file, "derived_from", "excluded")
    print_line(f"made {file['id']} without {count} of the rows of {file_id} ({show_size(file['bytes'])})")
    if done["job"] is not None:
        job_id = done["job"]["id"]
        print_line(f"created {job_id}, as {run_again} was; watch it with: tether jobs follow {job_id}")
    else:
        print_line(f"next: tether jobs create --model NAME --training-file {file['id']}")


def read_rows(text: str | None) -> list[int] | None:
    """Return the rows that a list such as 3,7,20-29 names, each once. Raises typer.BadParameter."""
    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise typer.BadParameter(f"--rows: {part!r} is neither a row, as 3, nor some, as 20-29")
        if len(found) + last - first >= MAX_ROWS:
            raise typer.BadParameter(f"--rows: more than {MAX_ROWS} rows; leave them out of the file itself")
        found.update(range(first, last + 1))
    return sorted(found)


def safe_name(name: str) -> str:
    """Return the last part of a name that a server gave, for a file here: visible, without control characters."""
    last = PurePosixPath(PureWindowsPath(name).name).name
    return clean(last).replace("\\", "_").lstrip(".")[:200] or "file"


def report_download(target: Path, sha256: str | None, *, as_json: bool) -> None:
    """Say where a download lies and what its digest is."""
    size = target.stat().st_size
    if as_json:
        print_json({"path": str(target), "bytes": size, "sha256": sha256})
    else:
        checked = f", SHA-256 {sha256}" if sha256 else ""
        print_line(f"wrote {target} ({show_size(size)}{checked})")
