"""tether ledger: how long records are kept, and what holds them"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.common import Home, database_of, settings_of
from app.cli.output import Json, make_flag, print_json, print_line, print_list, show_size, show_time

if TYPE_CHECKING:
    from app.models.retention import LegalHold

group = typer.Typer(no_args_is_help=True, help="How long the records of jobs are kept, and what holds them.")

MAX_SHOWN = 20


@group.command("prune")
def prune(
    yes: Annotated[bool, make_flag("--yes", "Do it. Without it, only what would go is shown.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Let go the records of jobs that ended longer ago than they are kept; their hashes stay, and every signature holds.

    The log is told first; the bytes go when that is signed, so that the notary must be running.
    """
    from app.retention import service

    settings = settings_of(home)
    with database_of(settings) as database:
        if not yes:
            plans = [
                {"job": plan.job_id, "scope": plan.scope, "records": plan.records, "bytes": plan.size_bytes}
                for plan in service.list_due(database, settings)
            ]
            show_due(plans, as_json=as_json)
            return
        service.announce(database, settings)
        done, left = service.carry_out(database)
    if as_json:
        print_json(
            {
                "object": "pruning",
                "pruned": [{"job": each.job_id, "scope": each.scope} for each in done],
                "waiting": [{"job": each.job_id, "scope": each.scope} for each in left],
            }
        )
    else:
        print_line(f"pruned {len(done)} job{'' if len(done) == 1 else 's'}")
        for each in left[:MAX_SHOWN]:
            print_line(f"not pruned yet: {each.job_id} ({each.scope})")
    if left and not as_json:
        print_line(
            "next: see that the notary runs (tether doctor) and that no legal hold was placed meanwhile (tether ledger holds),"
            " then run this again"
        )


def show_due(plans: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print what would be pruned."""
    if as_json:
        print_json({"object": "list", "data": plans})
        return
    print_list(
        ("job", "scope", "records", "size"),
        [(each["job"], each["scope"], each["records"], show_size(each["bytes"])) for each in plans],
        empty="nothing is old enough, or what is stands under a legal hold",
    )
    if plans:
        print_line(
            "next: export the evidence of those that you want to keep whole, then: tether ledger prune --yes"
        )


@group.command("hold")
def hold(
    reason: Annotated[str, typer.Option(help="Why. It stays here; the log gets its digest.")],
    job: Annotated[str | None, typer.Option(help="Hold this job.", show_default=False)] = None,
    project: Annotated[
        str | None, typer.Option(help="Hold everything of this project.", show_default=False)
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Place a legal hold: nothing of the job, or of the project, is pruned or erased before it is released."""
    from app.database import unit_of_work
    from app.retention.service import place_hold

    if (job is None) is (project is None):
        raise typer.BadParameter("name either --job or --project")
    with database_of(settings_of(home)) as database, unit_of_work(database) as session:
        shown = describe_hold(place_hold(session, job_id=job, project_id=project, reason=reason))
    if as_json:
        print_json(shown)
    else:
        print_line(f"placed {shown['id']} on {job or project}")


@group.command("release")
def release(
    hold_id: Annotated[str, typer.Argument(metavar="HOLD", help="Id of a legal hold.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Release a legal hold."""
    from app.database import unit_of_work
    from app.retention.service import release_hold

    with database_of(settings_of(home)) as database, unit_of_work(database) as session:
        shown = describe_hold(release_hold(session, hold_id))
    if as_json:
        print_json(shown)
    else:
        print_line(f"released {shown['id']}")


@group.command("holds")
def list_holds(home: Home = None, as_json: Json = False) -> None:
    """List the legal holds, newest first; released ones too."""
    from app.database import read_only
    from app.retention import repository

    with database_of(settings_of(home)) as database, read_only(database) as session:
        found = [describe_hold(each) for each in repository.list_holds(session)]
    if as_json:
        print_json({"object": "list", "data": found})
        return
    print_list(
        ("id", "project", "job", "reason", "placed at", "released at"),
        [
            (
                each["id"],
                each["project"],
                each["job"],
                each["reason"],
                show_time(each["created_at"]),
                show_time(each["released_at"]),
            )
            for each in found
        ],
        empty="there is no legal hold",
    )


def describe_hold(held: "LegalHold") -> dict[str, Any]:
    """Return a hold as JSON has it."""
    return {
        "id": held.id,
        "object": "legal_hold",
        "project": held.project_id,
        "job": held.job_id,
        "reason": held.reason,
        "created_at": int(held.created_at.timestamp()),
        "released_at": int(held.released_at.timestamp()) if held.released_at else None,
    }
