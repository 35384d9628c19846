"""tether verify"""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.output import Json, print_json, print_line


def verify(
    bundle: Annotated[Path, typer.Argument(help="An evidence bundle.", exists=True, dir_okay=False)],
    adapter: Annotated[Path | None, typer.Option(help="The adapter's zip, to be checked against it.")] = None,
    data: Annotated[Path | None, typer.Option(help="The training file, to be checked against it.")] = None,
    parent: Annotated[
        Path | None, typer.Option(help="The bundle of the job whose adapter this one went on from.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="The trust policy: whose signature must be there. From elsewhere than the bundle."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check an evidence bundle offline. The exit code is 0 where no check failed."""
    from app.domain.trust import parse_trust
    from app.domain.verify import verify_bundle

    for given in (adapter, data, parent, policy):
        if given is not None and not given.is_file():
            raise typer.BadParameter(f"{given} is not a file that can be read")
    try:
        trust = parse_trust(policy.read_text(encoding="utf-8")) if policy else None
    except ValueError as error:
        raise typer.BadParameter(f"--policy {policy}: {error}") from None
    report = verify_bundle(bundle, adapter=adapter, data=data, parent=parent, trust=trust)
    if as_json:
        print_json(report.to_dict())
    else:
        # A bundle comes from whoever it accuses.
        for line in report.lines():
            print_line(line)
    raise typer.Exit(report.exit_code)
