"""tether projects"""

from typing import Annotated

import typer

from app.cli.common import Home, database_of, settings_of
from app.cli.output import Json, print_json, print_line, print_table

group = typer.Typer(no_args_is_help=True, help="Projects: tenants that see nothing of each other.")


@group.command("add")
def add_project(
    name: Annotated[str, typer.Argument(help="What people call it.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Add a project and print its id."""
    from app.database import unit_of_work
    from app.projects.schemas import project_to_wire
    from app.projects.service import create_project

    settings = settings_of(home)
    with database_of(settings) as database:
        with unit_of_work(database) as session:
            project = create_project(session, name)
        if as_json:
            print_json(project_to_wire(project, settings))
            return
        print_line(f"added {project.id} ({project.name})")
        print_line(f"next: tether keys add --project {project.id} --role owner --name WHOSE")


@group.command("list")
def list_projects(home: Home = None, as_json: Json = False) -> None:
    """List the projects, newest first, with the limits that hold for each."""
    from dataclasses import astuple, fields

    from app.database import read_only
    from app.projects import repository
    from app.projects.schemas import project_to_wire
    from app.quotas.limits import Limits, limits_of

    settings = settings_of(home)
    with database_of(settings) as database, read_only(database) as session:
        found = repository.list_projects(session)
        if as_json:
            data = [project_to_wire(project, settings) for project in found]
            print_json({"object": "list", "data": data})
            return
        rows = [
            (
                project.id,
                project.name,
                *(limit or "no limit" for limit in astuple(limits_of(project, settings))),
                f"{project.created_at:%Y-%m-%d %H:%M} UTC",
            )
            for project in found
        ]
    print_table(("id", "name", *(field.name for field in fields(Limits)), "made at"), rows)
