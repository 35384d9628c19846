"""tether projects"""

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

MAX_LISTED = 1000

group = typer.Typer(
    no_args_is_help=True,
    help="Projects: tenants that see nothing of each other. Of the local installation or, with --url, of a server.",
)
Limit = Annotated[
    str | None,
    typer.Option(
        metavar="N|default",
        help="0: no limit. default: the installation's. Left out: as it was.",
        show_default=False,
    ),
]


@group.command("add")
def add_project(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What people call it.")],
    home: Home = None,
    url: MaybeUrl = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Add a project and print its id."""
    server_url = choose_server(context, url, home)
    announce_place(server_url, home)
    if server_url is None:
        project = add_local(home, name)
    else:
        with connect(server_url, key) as server:
            project = server.call("POST", "projects", json={"name": name})
    if as_json:
        print_json(project)
        return
    print_line(f"added {project['id']} ({project['name']})")
    print_line(f"next: tether keys add --project {project['id']} --role owner --name WHOSE")


def add_local(home: Path | None, name: str) -> dict[str, Any]:
    """Add a project to the local installation and return it."""
    from app.database import unit_of_work
    from app.projects.schemas import project_to_wire
    from app.projects.service import create_project

    settings = settings_of(home)
    with database_of(settings) as database, unit_of_work(database) as session:
        return project_to_wire(create_project(session, name), settings)


@group.command("list")
def list_projects(
    context: typer.Context,
    home: Home = None,
    url: MaybeUrl = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List the projects, newest first, with the limits that hold for each."""
    server_url = choose_server(context, url, home)
    announce_place(server_url, home)
    if server_url is None:
        found: dict[str, Any] = {"object": "list", "data": list_local(home)}
    else:
        with connect(server_url, key) as server:
            found = server.get_all("projects", limit=MAX_LISTED)
    if as_json:
        print_json(found)
        return
    limits = list(found["data"][0]["limits"]) if found["data"] else []
    print_list(
        ("id", "name", *limits, "made at"),
        [
            (
                project["id"],
                project["name"],
                *(project["limits"][name] or "no limit" for name in limits),
                show_time(project["created_at"]),
            )
            for project in found["data"]
        ],
        empty="no projects yet; add one with: tether projects add NAME",
    )


def list_local(home: Path | None) -> list[dict[str, Any]]:
    """Return the projects of the local installation."""
    from app.database import read_only
    from app.projects import repository
    from app.projects.schemas import project_to_wire

    settings = settings_of(home)
    with database_of(settings) as database, read_only(database) as session:
        return [project_to_wire(each, settings) for each in repository.list_projects(session)]


@group.command("change")
def change_project(
    context: typer.Context,
    project_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the project, as `tether projects list` shows it.")
    ],
    name: Annotated[str | None, typer.Option(help="What people call it now.", show_default=False)] = None,
    storage_bytes: Limit = None,
    running_jobs: Limit = None,
    queued_jobs: Limit = None,
    gpu_seconds: Limit = None,
    home: Home = None,
    url: MaybeUrl = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Rename a project, or change its limits: bytes kept, jobs that run and that wait, GPU seconds in a month."""
    said = {
        "storage_bytes": storage_bytes,
        "running_jobs": running_jobs,
        "queued_jobs": queued_jobs,
        "gpu_seconds": gpu_seconds,
    }
    limits = {each: read_limit(each, text) for each, text in said.items() if text is not None}
    if name is None and not limits:
        raise typer.BadParameter("say what is to change: --name or one of the limits")
    server_url = choose_server(context, url, home)
    announce_place(server_url, home)
    if server_url is None:
        project = change_local(home, project_id, name, limits)
    else:
        body = {"limits": limits, **({"name": name} if name is not None else {})}
        with connect(server_url, key) as server:
            project = server.call("PATCH", "projects", project_id, json=body)
    if as_json:
        print_json(project)
        return
    held = ", ".join(f"{each} {value or 'no limit'}" for each, value in project["limits"].items())
    print_line(f"{project['id']} ({project['name']}): {held}")


def change_local(
    home: Path | None, project_id: str, name: str | None, limits: dict[str, int | None]
) -> dict[str, Any]:
    """Change a project of the local installation and return it."""
    from app.database import unit_of_work
    from app.projects import service
    from app.projects.schemas import project_to_wire
    from app.quotas.limits import LimitsUpdate

    settings = settings_of(home)
    with database_of(settings) as database, unit_of_work(database) as session:
        project = service.change_project(session, project_id, name=name, limits=LimitsUpdate(**limits))
        return project_to_wire(project, settings)


def read_limit(name: str, text: str) -> int | None:
    """Return a limit as the wire has it; None for the installation's. Raises typer.BadParameter."""
    if text == "default":
        return None
    if text.isascii() and text.isdigit() and int(text) < 2**63:
        return int(text)
    raise typer.BadParameter(f"--{name.replace('_', '-')} is a number from 0, or default")
