"""tether risk"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.common import DEFAULT_URL, Key, Url, connect
from app.cli.files import report_download
from app.cli.job_words import name_critic
from app.cli.jobs import JOBS, JobId
from app.cli.output import Json, make_flag, out, print_json, print_line, print_table, show_cell
from app.cli.sparkline import sparkline

SHOWN = ("step", "risk_mean", "risk_max", "risk_smoothed", "beta_mean", "beta_max", "nll", "kl", "loss")
CURVES = (
    ("risk, highest row", "risk_max"),
    ("risk, smoothed", "risk_smoothed"),
    ("beta, mean", "beta_mean"),
)
LABEL_WIDTH = 20
SPARKLINE_WIDTH = 80


class Picture(StrEnum):
    """What the server makes of a curve, by the end of a file's name."""

    CSV = ".csv"
    PNG = ".png"
    SVG = ".svg"


def risk(
    job_id: JobId,
    points: Annotated[
        int, typer.Option(help="At most so many steps; the lowest and highest are kept.", min=4, max=20000)
    ] = 2000,
    table: Annotated[bool, make_flag("--table", "Print the steps as a table, too.")] = False,
    target: Annotated[
        Path | None,
        typer.Option("--out", help="Write the curve to a new file: .csv, .png or .svg.", show_default=False),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show the risk of a job's steps and what was done about it, as lines from the first step to the last."""
    if target is not None:
        write_curve(job_id, target, points, url, key, as_json=as_json)
        return
    with connect(url, key) as server:
        curve = server.get(*JOBS, job_id, "risk", max_points=points)
    if as_json:
        print_json(curve)
        return
    print_curve(curve)
    if table:
        places = [curve["columns"].index(name) for name in SHOWN]
        print_table(SHOWN, [[show_cell(row[place]) for place in places] for row in curve["rows"]])


def write_curve(job_id: str, target: Path, points: int, url: str, key: str | None, *, as_json: bool) -> None:
    """Have the server draw or list the curve, by the end of the file's name, and write it."""
    from app.cli.transfer import download

    try:
        kind = Picture(target.suffix.lower())
    except ValueError:
        raise typer.BadParameter(f"--out: {target} ends neither in {' nor in '.join(Picture)}") from None
    with connect(url, key) as server:
        path = (*JOBS, job_id, "risk")
        sha256 = download(server, path, target, format=kind.value[1:], max_points=str(points))
    report_download(target, sha256, as_json=as_json)


def print_curve(curve: dict[str, Any]) -> None:
    """Print a curve as lines of blocks."""
    rows = curve["rows"]
    if not rows:
        print_line(f"{curve['job']} has no steps yet")
        return
    critic = name_critic(curve["critic"])
    first, last = (row[curve["columns"].index("step")] for row in (rows[0], rows[-1]))
    print_line(f"{curve['job']}: steps {first} to {last} of {curve['total_steps'] or '?'}; 0 to 1")
    print_line(f"risk by {critic}" if critic else "no critic measured the risk")
    for label, name in CURVES:
        values = column_of(curve, name)
        measured = [value for value in values if value is not None]
        if measured:
            width = min(SPARKLINE_WIDTH, max(10, out.width - LABEL_WIDTH - 24))
            drawn = sparkline(values, width)
            print_line(f"{label:<{LABEL_WIDTH}}{drawn}  last {measured[-1]:.3f}, highest {max(measured):.3f}")


def column_of(curve: dict[str, Any], name: str) -> list[float | None]:
    """Return a column as numbers; what the record could not hold as one (NaN, infinity) is NaN."""
    place = curve["columns"].index(name)
    return [to_number(row[place]) for row in curve["rows"]]


def to_number(value: Any) -> float | None:
    """Return a cell as a number."""
    if value is None:
        return None
    return float(value) if isinstance(value, int | float) else float("nan")
