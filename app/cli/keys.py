"""tether keys"""

import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.common import (
    Home,
    Key,
    MaybeUrl,
    announce_place,
    choose_server,
    connect,
    database_of,
    settings_of,
)
from app.cli.output import Json, print_json, print_line, print_list, show_time
from app.domain.scopes import SCOPES_OF, Role, Scope

MAX_LISTED = 1000
HOUR_S = 3600

group = typer.Typer(
    no_args_is_help=True,
    help="Keys of the API, of the local installation or, with --url, of a server, as far as your key may.",
)
KeyId = Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `tether keys list` shows it.")]


@group.command("add")
def add_key(
    context: typer.Context,
    role: Annotated[
        Role,
        typer.Option(
            help="member: files and jobs. owner: the project's keys too. operator: critics, safety sets and every"
            " project too."
        ),
    ],
    name: Annotated[str, typer.Option(help="Whose key it is, or what for.")],
    project: Annotated[
        str | None,
        typer.Option(help="Id of the project. Default: the first one; of a server, that of your key."),
    ] = None,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="Only this, of what the role may do; may be given again. Default: all of it."),
    ] = None,
    days: Annotated[int | None, typer.Option(help="Days until it expires. Default: never.", min=1)] = None,
    home: Home = None,
    url: MaybeUrl = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a key of the API and print it, which happens only now."""
    server_url = choose_server(context, url, home)
    announce_place(server_url, home)
    if server_url is None:
        made = add_local(home, role, name, project, scope, days)
    else:
        body = {
            "role": role.value,
            "name": name,
            "project_id": project,
            "scopes": [each.value for each in scope] if scope else None,
            "expires_in_s": None if days is None else days * 24 * HOUR_S,
        }
        with connect(server_url, key) as server:
            # A key whose reply is lost is no use to anybody; it is in the list, to be revoked.
            given = {field: value for field, value in body.items() if value is not None}
            made = server.call("POST", "api_keys", json=given)
    if as_json:
        print_json(made)
    else:
        print_line(f"key of {made['name']} ({made['role']}), shown only now: {made['key']}")


def add_local(
    home: Path | None,
    role: Role,
    name: str,
    project: str | None,
    scopes: list[Scope] | None,
    days: int | None,
) -> dict[str, Any]:
    """Make a key of the local installation and return it, with what opens."""
    from app.database import unit_of_work
    from app.keys import service
    from app.keys.schemas import key_to_wire
    from app.models.base import utc_now

    with database_of(settings_of(home)) as database, unit_of_work(database) as session:
        made = service.add_key(
            session,
            name=name,
            role=role,
            project_id=project or service.DEFAULT_PROJECT,
            scopes=scopes or None,
            expires_at=None if days is None else utc_now() + timedelta(days=days),
        )
        return key_to_wire(made.row, service.scopes_of(made.row), secret=made.secret)


@group.command("list")
def list_keys(
    context: typer.Context,
    project: Annotated[
        str | None,
        typer.Option(
            help="Id of a project, or all. Default: all; of a server, the project of your key.",
            show_default=False,
        ),
    ] = None,
    home: Home = None,
    url: MaybeUrl = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List the keys, newest first, without what opens."""
    server_url = choose_server(context, url, home)
    announce_place(server_url, home)
    if server_url is None:
        found: dict[str, Any] = {"object": "list", "data": list_local(home, project)}
    else:
        with connect(server_url, key) as server:
            found = server.get_all("api_keys", limit=MAX_LISTED, project_id=project)
    if as_json:
        print_json(found)
        return
    now = time.time()
    print_list(
        ("id", "name", "role", "scopes", "project", "made at", "last used", "state"),
        [
            (
                each["id"],
                each["name"],
                each["role"],
                name_scopes(each),
                each["project_id"],
                show_time(each["created_at"]),
                show_time(each["last_used_at"]) or "never",
                describe_state(each, now),
            )
            for each in found["data"]
        ],
        empty="no keys yet; make one with: tether keys add --role member --name WHOSE",
    )


def list_local(home: Path | None, project: str | None) -> list[dict[str, Any]]:
    """Return the keys of the local installation."""
    from app.database import read_only
    from app.keys import repository, service
    from app.keys.schemas import key_to_wire

    wanted = None if project == "all" else project
    with database_of(settings_of(home)) as database, read_only(database) as session:
        found = repository.list_keys(session, wanted)
        return [key_to_wire(each, service.scopes_of(each)) for each in found]


@group.command("revoke")
def revoke_key(
    context: typer.Context,
    key_id: KeyId,
    home: Home = None,
    url: MaybeUrl = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Close a key for ever."""
    server_url = choose_server(context, url, home)
    announce_place(server_url, home)
    if server_url is None:
        revoked = revoke_local(home, key_id)
    else:
        with connect(server_url, key) as server:
            revoked = server.call("DELETE", "api_keys", key_id)
    if as_json:
        print_json(revoked)
    else:
        print_line(f"{key_id} opens nothing any more")


def revoke_local(home: Path | None, key_id: str) -> dict[str, Any]:
    """Close a key of the local installation and return it."""
    from app.database import unit_of_work
    from app.keys import service
    from app.keys.schemas import key_to_wire

    with database_of(settings_of(home)) as database, unit_of_work(database) as session:
        row = service.revoke_key(session, service.OPERATOR_AT_THE_MACHINE, key_id)
        return key_to_wire(row, service.scopes_of(row))


@group.command("rotate")
def rotate_key(
    context: typer.Context,
    key_id: KeyId,
    hours: Annotated[int, typer.Option(help="Hours that the old key still opens.", min=0, max=720)] = 24,
    home: Home = None,
    url: MaybeUrl = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a key like this one and print it, which happens only now; the old one ends after a while."""
    server_url = choose_server(context, url, home)
    announce_place(server_url, home)
    if server_url is None:
        made = rotate_local(home, key_id, hours)
    else:
        with connect(server_url, key) as server:
            made = server.call("POST", "api_keys", key_id, "rotate", json={"overlap_s": hours * HOUR_S})
    if as_json:
        print_json(made)
        return
    print_line(f"key of {made['name']} ({made['role']}), shown only now: {made['key']}")
    print_line(f"{key_id} opens for {hours} more hours at most")


def rotate_local(home: Path | None, key_id: str, hours: int) -> dict[str, Any]:
    """Make a key like one of the local installation and return it, with what opens."""
    from app.database import unit_of_work
    from app.keys import service
    from app.keys.schemas import key_to_wire

    with database_of(settings_of(home)) as database, unit_of_work(database) as session:
        made = service.rotate_key(
            session, service.OPERATOR_AT_THE_MACHINE, key_id, overlap=timedelta(hours=hours)
        )
        return key_to_wire(made.row, service.scopes_of(made.row), secret=made.secret)


def name_scopes(key: dict[str, Any]) -> str:
    """Return what a key may do, in short where it is all that its role may."""
    whole = {scope.value for role, scopes in SCOPES_OF.items() if role == key["role"] for scope in scopes}
    return "all of the role" if set(key["scopes"]) == whole else " ".join(key["scopes"])


def describe_state(key: dict[str, Any], now: float) -> str:
    """Return in words whether a key opens."""
    if key["revoked_at"] is not None:
        return "revoked"
    if key["expires_at"] is None:
        return "live"
    return f"{'expired' if key['expires_at'] <= now else 'live until'} {show_time(key['expires_at'])}"
