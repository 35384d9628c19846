"""What commands print: tables, fields, JSON and progress. Foreign text never reaches the terminal raw."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from app.domain.terminal_text import escape_controls

WIDTH_OF_A_FILE = 240

# Without markup and emoji: in «pip install 'tether[worker]'» the brackets are text, and so is :cat: in a name.
# Where no terminal says how wide it is, a table needs room: an id that is cut in two cannot be copied.
out = Console(
    soft_wrap=True,
    highlight=False,
    markup=False,
    emoji=False,
    width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE,
)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
"""For errors and progress, so that what a command prints can be read by a program."""


def make_flag(name: str, help_text: str) -> Any:
    """Return the option of something that is said or not; in help it stands without a type."""
    return typer.Option(name, help=help_text, metavar="")


Json = Annotated[bool, make_flag("--json", "Print JSON, for programs.")]


def can_draw(console: Console) -> bool:
    """Say whether what is printed here can move: a pipe and a dumb terminal get lines, without control characters."""
    return console.is_terminal and not console.is_dumb_terminal


def clean(value: object) -> str:
    """Return a value as text whose control and format characters are written out: a newline as \\n, ESC as \\x1b."""
    return escape_controls(str(value))


def print_json(value: object) -> None:
    """Print a value as JSON in plain ASCII. DEL is the one control character that JSON would let through."""
    out.print(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def print_line(text: str) -> None:
    """Print a line that may hold foreign text."""
    out.print(clean(text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows as a table; None is an empty cell. The first column is never cut."""
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else clean(cell) for cell in row))
    out.print(table)


def print_list(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print rows as a table; where there is none, a line that says so and what to do."""
    if rows:
        print_table(columns, rows)
    else:
        print_line(empty)


def print_fields(fields: Mapping[str, object]) -> None:
    """Print the fields of one thing, a line each; those that are None are left out."""
    width = max(map(len, fields))
    for name, value in fields.items():
        if value is not None:
            out.print(f"{name:<{width}}  {clean(value)}")


def show(number: float | None) -> str:
    """Return a figure as tables have it."""
    return "unknown" if number is None else f"{number:.3f}"


def show_cell(value: Any) -> Any:
    """Return a number of a record in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else value


def show_time(seconds: float | None) -> str | None:
    """Return a moment of the wire, in seconds since 1970, as people read it."""
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def show_size(count: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def get_in(value: Any, *names: str) -> Any:
    """Return what lies below these names in nested objects; None where a server of another version has no such field."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def state_of(job: dict[str, Any]) -> str:
    """Return the finer state of a job, where the server tells it."""
    return str(get_in(job, "safety", "state") or job.get("status"))
