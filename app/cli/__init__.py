"""The tether command: a module for each noun. Each imports what it needs when it runs, so that all start quickly."""

import sys

import typer

from app.cli import (
    artifacts,
    critics,
    evals,
    files,
    jobs,
    keys,
    ledger,
    log,
    models,
    parts,
    policies,
    projects,
    safety_sets,
    usage,
    verify,
    webhooks,
)
from app.cli.output import clean, err
from app.cli.risk import risk
from app.errors import TetherError

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
for command in (
    parts.serve,
    parts.api,
    parts.reconciler,
    parts.worker,
    log.notary,
    parts.migrate,
    parts.grants,
    parts.doctor,
):
    cli.command()(command)
cli.command()(risk)
cli.command()(verify.verify)
cli.command()(usage.usage)
jobs.group.add_typer(artifacts.group)
for name, group in (
    ("files", files.group),
    ("jobs", jobs.group),
    ("models", models.group),
    ("critics", critics.group),
    ("evals", evals.group),
    ("anchors", safety_sets.anchors),
    ("alignment", safety_sets.alignment),
    ("keys", keys.group),
    ("log", log.group),
    ("ledger", ledger.group),
    ("policies", policies.group),
    ("projects", projects.group),
    ("webhooks", webhooks.group),
):
    cli.add_typer(group, name=name)

_HYPERPARAMETERS = "method.supervised.hyperparameters"
OPTIONS = {
    "model": "--base",
    f"{_HYPERPARAMETERS}.n_epochs": "--epochs",
    f"{_HYPERPARAMETERS}.batch_size": "--batch-size",
    f"{_HYPERPARAMETERS}.learning_rate_multiplier": "--learning-rate-multiplier",
}
"""Options whose field in a request has another name."""


def main() -> None:
    """Run the command line; an error that Tether raises on purpose is a line for each problem and exit code 1."""
    try:
        cli(prog_name="tether")
    except TetherError as error:
        text = "\n".join(map(clean, error.lines()))
        for field, option in OPTIONS.items():
            if error.param == field and text.startswith(f"{field}: "):
                text = option + text.removeprefix(field)
        err.print(f"error: {text}")
        sys.exit(1)
