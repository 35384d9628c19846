"""tether keys"""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import Home, database_of, settings_of
from app.cli.output import Json, print_json, print_line, print_table
from app.domain.scopes import Role, Scope

if TYPE_CHECKING:
    from app.models.tenancy import ApiKey

group = typer.Typer(no_args_is_help=True, help="Keys of the API.")
KeyId = Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `tether keys list` shows it.")]


@group.command("add")
def add_key(
    role: Annotated[
        Role,
        typer.Option(
            help="member: files and jobs. owner: the project's keys too. operator: critics, safety sets and every"
            " project too."
        ),
    ],
    name: Annotated[str, typer.Option(help="Whose key it is, or what for.")],
    project: Annotated[str | None, typer.Option(help="Id of the project. Default: the first one.")] = None,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="Only this, of what the role may do; may be given again. Default: all of it."),
    ] = None,
    days: Annotated[int | None, typer.Option(help="Days until it expires. Default: never.", min=1)] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a key of the API and print it, which happens only now."""
    from app.database import unit_of_work
    from app.keys import service
    from app.keys.schemas import key_to_wire
    from app.models.base import utc_now

    with database_of(settings_of(home)) as database:
        with unit_of_work(database) as session:
            made = service.add_key(
                session,
                name=name,
                role=role,
                project_id=project or service.DEFAULT_PROJECT,
                scopes=scope or None,
                expires_at=None if days is None else utc_now() + timedelta(days=days),
            )
        if as_json:
            print_json(key_to_wire(made.row, service.scopes_of(made.row), secret=made.secret))
        else:
            print_line(f"key of {name} ({role.value}), shown only now: {made.secret}")


@group.command("list")
def list_keys(home: Home = None, as_json: Json = False) -> None:
    """List the keys of every project, newest first, without what opens."""
    from app.database import read_only
    from app.keys import repository, service
    from app.keys.schemas import key_to_wire
    from app.models.base import utc_now

    with database_of(settings_of(home)) as database, read_only(database) as session:
        found = repository.list_keys(session, None)
        if as_json:
            data = [key_to_wire(key, service.scopes_of(key)) for key in found]
            print_json({"object": "list", "data": data})
            return
        print_table(
            ("id", "name", "role", "scopes", "project", "made at", "last used", "state"),
            [
                (
                    key.id,
                    key.name,
                    key.role,
                    "all of the role" if key.scopes is None else " ".join(key.scopes),
                    key.project_id,
                    f"{key.created_at:%Y-%m-%d %H:%M} UTC",
                    f"{key.last_used_at:%Y-%m-%d %H:%M} UTC" if key.last_used_at else "never",
                    describe_state(key, expired=key.expires_at is not None and key.expires_at <= utc_now()),
                )
                for key in found
            ],
        )


@group.command("revoke")
def revoke_key(key_id: KeyId, home: Home = None, as_json: Json = False) -> None:
    """Close a key for ever, at once."""
    from app.database import unit_of_work
    from app.keys import service
    from app.keys.schemas import key_to_wire

    with database_of(settings_of(home)) as database:
        with unit_of_work(database) as session:
            key = service.revoke_key(session, service.OPERATOR_AT_THE_MACHINE, key_id)
        if as_json:
            print_json(key_to_wire(key, service.scopes_of(key)))
        else:
            print_line(f"{key_id} opens nothing any more")


@group.command("rotate")
def rotate_key(
    key_id: KeyId,
    hours: Annotated[int, typer.Option(help="Hours that the old key still opens.", min=0, max=720)] = 24,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a key like this one and print it, which happens only now; the old one ends after a while."""
    from app.database import unit_of_work
    from app.keys import service
    from app.keys.schemas import key_to_wire

    with database_of(settings_of(home)) as database:
        with unit_of_work(database) as session:
            made = service.rotate_key(
                session, service.OPERATOR_AT_THE_MACHINE, key_id, overlap=timedelta(hours=hours)
            )
        if as_json:
            print_json(key_to_wire(made.row, service.scopes_of(made.row), secret=made.secret))
            return
        print_line(f"key of {made.row.name} ({made.row.role}), shown only now: {made.secret}")
        print_line(f"{key_id} opens for {hours} more hours at most")


def describe_state(key: "ApiKey", *, expired: bool) -> str:
    """Return in words whether a key opens."""
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "live"
    return f"{'expired' if expired else 'live until'} {key.expires_at:%Y-%m-%d %H:%M} UTC"
