"""tether usage"""

from typing import Annotated, Any

import typer

from app.cli.common import DEFAULT_URL, Key, Url, connect
from app.cli.output import Json, print_json, print_line, print_table, show_size
from app.domain.job import OWNED, State

NO_LIMIT = "no limit"
WAITING = (State.VALIDATING, State.QUEUED, State.PAUSED)


def usage(
    month: Annotated[
        str | None,
        typer.Option(
            metavar="YYYY-MM", help="Month (UTC) of the GPU time. Default: this one.", show_default=False
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            metavar="ID|all", help="For operators: another project, or all of them.", show_default=False
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show what the project has used, and its limits."""
    with connect(url, key) as server:
        found = server.get("usage", month=month, project_id=project)
    if as_json:
        print_json(found)
        return
    for each in found["data"] if found["object"] == "list" else [found]:
        print_usage(each)


def print_usage(used: dict[str, Any]) -> None:
    """Print the usage of one project: what is used, of how much, and the GPU time by day."""
    print_line(f"{used['project_name']} ({used['project_id']}), {used['month']}")
    limits, jobs = used["limits"], used["jobs"]
    print_table(
        ("what", "used", "limit"),
        [
            (
                "storage",
                show_size(used["storage_bytes"]),
                show_size(limits["storage_bytes"]) if limits["storage_bytes"] else NO_LIMIT,
            ),
            ("jobs that run", sum(jobs.get(state, 0) for state in OWNED), limits["running_jobs"] or NO_LIMIT),
            (
                "jobs that wait",
                sum(jobs.get(state, 0) for state in WAITING),
                limits["queued_jobs"] or NO_LIMIT,
            ),
            ("GPU seconds in the month", f"{used['gpu_seconds']:.1f}", limits["gpu_seconds"] or NO_LIMIT),
            ("trained tokens, ever", used["trained_tokens"], None),
        ],
    )
    ended = ", ".join(f"{count} {state}" for state, count in jobs.items())
    print_line(f"all of its jobs: {ended or 'none yet'}")
    days = used["gpu_seconds_by_day"]
    if days:
        print_table(
            ("day (UTC)", "GPU seconds"), [(day["date"], f"{day['gpu_seconds']:.1f}") for day in days]
        )
