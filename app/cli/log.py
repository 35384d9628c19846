"""tether log, and tether notary"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import A_FILE, DEFAULT_URL, Home, Key, Url, database_of, settings_of
from app.cli.output import Json, clean, err, out, print_json, print_line, show_time
from app.errors import ConfigurationError

if TYPE_CHECKING:
    from app.database import Database
    from app.domain.log_audit import Audited

group = typer.Typer(no_args_is_help=True, help="The installation's log, which the notary signs.")


def notary(home: Home = None) -> None:
    """Run the notary alone: it needs the database, and a folder that nobody else can read."""
    from app.cli.parts import stopped_by_signals
    from app.notary.service import run_notary

    settings = settings_of(home)
    with database_of(settings) as database:
        run_notary(database, settings, stopped_by_signals())


@group.command("trust")
def print_trust(home: Home = None, as_json: Json = False) -> None:
    """Print the trust policy that names this installation's logs and their keys, for `tether verify --policy`.

    Hand it to auditors by a way that does not pass through this installation's database.
    """
    from app.database import read_only
    from app.domain.trust import format_trust
    from app.notary import repository
    from app.notary.service import list_keys

    settings = settings_of(home)
    with database_of(settings) as database, read_only(database) as session:
        signers = repository.list_signers(session)
    trusted, unknown = list_keys(settings, signers)
    for origin, ids in unknown.items():
        err.print(
            f"warning: {origin} was signed by {', '.join(ids)} too, which {settings.notary_dir} does not know; take that"
            " key from an earlier policy",
        )
    if as_json:
        print_json(
            {"logs": [{"origin": origin, "keys": list(map(str, keys))} for origin, keys in trusted.items()]}
        )
    else:
        policies = (format_trust(origin, keys) for origin, keys in trusted.items())
        out.print("\n".join(policies), end="", soft_wrap=True)


@group.command("show")
def show_log(home: Home = None, as_json: Json = False) -> None:
    """Say which log is written, how long it is, and what was signed of it."""
    from app.database import read_only
    from app.notary import repository
    from app.notary.anchor import find_standing

    settings = settings_of(home)
    with database_of(settings) as database, read_only(database) as session:
        log = repository.get_log(session)
        size = repository.count_leaves(session, log.number) if log else 0
        checkpoint = repository.get_checkpoint(session, log.number) if log else None
        pending = len(repository.list_pending_events(session))
        anchored = find_standing(session)
        standing = anchored if settings.anchor_url or anchored.is_known else None
        refusal = repository.get_refusal(session)
    found = {
        "origin": log.origin if log else None,
        "size": size,
        "signed_size": checkpoint.size if checkpoint else 0,
        "signed_at": int(checkpoint.signed_at.timestamp()) if checkpoint else None,
        "root": checkpoint.root if checkpoint else None,
        "key": checkpoint.key if checkpoint else None,
        "pending_events": pending,
        "anchored_size": standing.size if standing else None,
        "anchored_at": int(standing.sent_at.timestamp()) if standing and standing.sent_at else None,
        "refused_since": int(refusal.since.timestamp()) if refusal else None,
    }
    if as_json:
        print_json({"object": "log", **found})
        return
    for name, value in found.items():
        shown = show_time(value) if name.endswith(("_at", "_since")) and isinstance(value, int) else value
        print_line(f"{name:<15} {shown if shown is not None else 'none'}")
    if refusal is not None:
        print_line(f"the notary signs nothing: {refusal.reason}")
    if standing is not None and standing.is_late(settings):
        print_line(
            f"warning: what was signed has not been outside for {standing.lag_s:.0f} s:"
            f" {standing.error or 'nobody sends it; run: tether webhooks deliver'}"
        )


@group.command("checkpoint")
def print_checkpoint(home: Home = None, as_json: Json = False) -> None:
    """Print the newest signed checkpoint, to be kept where this installation cannot reach: tether log checkpoint > FILE.

    `tether log audit --since FILE` shows later whether the log still goes on from it.
    """
    from app.database import read_only
    from app.errors import NotFound
    from app.notary import repository

    with database_of(settings_of(home)) as database, read_only(database) as session:
        log = repository.get_log(session)
        checkpoint = repository.get_checkpoint(session, log.number) if log else None
    if log is None or checkpoint is None:
        raise NotFound("nothing was signed yet; start a notary: tether serve, or tether notary")
    if as_json:
        signed_at = int(checkpoint.signed_at.timestamp())
        found = {
            "origin": log.origin,
            "size": checkpoint.size,
            "root": checkpoint.root,
            "signed_at": signed_at,
        }
        print_json({"object": "log.checkpoint", **found, "note": checkpoint.note})
    else:
        sys.stdout.write(checkpoint.note)


@group.command("audit")
def audit(
    url: Url = DEFAULT_URL,
    key: Key = None,
    policy: Annotated[
        Path, typer.Option(help="Trust policy (TOML) that says whose signatures count.", **A_FILE)
    ] = ...,  # type: ignore[assignment]
    since: Annotated[
        Path | None,
        typer.Option(help="A checkpoint from before, which the log must go on from.", **A_FILE),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="File for the newest checkpoint, once it has passed; the next --since."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read a server's whole log and check it: every leaf, the root, the signature, and that it was never rewritten."""
    from app.cli.auditor import audit_server

    found = audit_server(url, key, policy, since)
    if save is not None:
        save.write_bytes(found[-1].note)
    if as_json:
        print_json({"object": "list", "data": [describe(each) for each in found]})
        return
    for each in found:
        keys = ", ".join(f"{key.name}+{key.id.hex()}" for key in each.keys)
        held = "" if each.since is None else f"; it goes on from the checkpoint of size {each.since}"
        print_line(
            f"{each.checkpoint.origin}: {each.checkpoint.size} leaves under the signature of {keys}{held}"
        )
        acts = ", ".join(f"{name} {count}" for name, count in sorted(each.events.items()))
        print_line(f"  heads of {each.jobs} jobs; acts: {acts or 'none'}")
    if since is None:
        print_line(
            "next time: --since FILE shows that nothing of this was rewritten; keep one with --save FILE"
        )


def describe(found: "Audited") -> dict[str, object]:
    """Return what was found of a log, as JSON has it."""
    return {
        "object": "log.audit",
        "origin": found.checkpoint.origin,
        "size": found.checkpoint.size,
        "root": found.checkpoint.root.hex(),
        "keys": list(map(str, found.keys)),
        "jobs": found.jobs,
        "events": found.events,
        "since": found.since,
    }


@group.command("rotate")
def rotate(home: Home = None, as_json: Json = False) -> None:
    """Let a new key of the notary's sign from now on, and remove the old one.

    The log announces the new key, and one checkpoint is signed by both.
    """
    from app.notary.service import rotate_key

    settings = settings_of(home)
    with database_of(settings) as database:
        old, new = rotate_key(database, settings)
    if as_json:
        print_json({"object": "log.rotation", "old_key": str(old), "new_key": str(new)})
        return
    print_line(f"the key {new.id.hex()} signs from now on; {old.id.hex()} is gone, its public half is kept")
    print_line("next: give auditors the new trust policy, which names both keys: tether log trust")
    print_line(f"next: back up {settings.notary_dir}, and destroy the copies of the old key")


@group.command("fork")
def fork(
    home: Home = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.", metavar="")] = False,
    as_json: Json = False,
) -> None:
    """Open a new log, because the database is not the one that the notary signed and that one is lost.

    The break stays visible: the new log has another origin, and begins with what was signed of the old one.
    """
    from app.notary.service import fork_log

    settings = settings_of(home)
    with database_of(settings) as database:
        if not yes:
            confirm_fork(database)
        origin = fork_log(database, settings)
    if as_json:
        print_json({"object": "log", "origin": origin})
        return
    print_line(f"opened the log {origin}; the notary goes on with it")
    print_line("next: give auditors the new trust policy, which names both logs: tether log trust")


def confirm_fork(database: "Database") -> None:
    """Ask whether the log is to be broken, naming what breaks. Raises ConfigurationError where nobody can be asked."""
    from app.database import read_only
    from app.notary import repository

    with read_only(database) as session:
        log, refusal = repository.get_log(session), repository.get_refusal(session)
        checkpoint = repository.get_checkpoint(session, log.number) if log else None
    signed = f"{checkpoint.size} leaves" if checkpoint else "nothing"
    err.print(
        f"This ends the log {clean(log.origin) if log else '(none)'}, of which this database has {signed} signed, for"
        " ever: nothing signed from now on is proved to go on from it. Every auditor sees the break and needs a new trust"
        " policy, and every job's heads begin anew."
    )
    if refusal is None:
        err.print(
            "The notary has not said that it refuses: as far as is known there is no reason to do this."
        )
    else:
        err.print(f"The notary refuses since {refusal.since:%Y-%m-%d %H:%M} UTC: {clean(refusal.reason)}")
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody can be asked here; where it is meant, add: --yes")
    if not typer.confirm("Open a new log?", err=True):
        raise typer.Exit(1)
