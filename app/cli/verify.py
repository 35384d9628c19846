"""tether verify: the verifier's own command line, `app.domain.verify_command`, as a part of this one."""

import inspect
from pathlib import Path
from typing import Any

import typer

from app.cli.output import out
from app.domain.verify_options import BUNDLE_HELP, DESCRIPTION, OPTIONS, Option, UsageError


def verify(**values: Any) -> None:
    from app.domain.verify_command import run

    try:
        code, text = run(**values)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None
    out.print(text, end="", soft_wrap=True)
    raise typer.Exit(code)


def _declare(option: Option) -> inspect.Parameter:
    """Return an option of the verifier as Typer reads it from a function."""
    kind: Any = bool if option.is_flag else list[Path] if option.is_repeatable else Path
    default: Any = False if option.is_flag else [] if option.is_repeatable else None
    metavar = "" if option.is_flag else "FILE"
    declared = typer.Option(
        default, f"--{option.name}", help=option.help, metavar=metavar, show_default=False
    )
    name = option.name.replace("-", "_")
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=declared, annotation=kind)


verify.__doc__ = DESCRIPTION
verify.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter(
            "bundle",
            inspect.Parameter.KEYWORD_ONLY,
            default=typer.Argument(..., help=BUNDLE_HELP),
            annotation=Path,
        ),
        *map(_declare, OPTIONS),
    ]
)
