"""tether log, and tether notary"""

import typer

from app.cli.common import Home, database_of, settings_of
from app.cli.output import Json, out, print_json, print_line

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
    """Print the trust policy that names this installation's logs and their key, for `tether verify --policy`.

    Hand it to auditors by a way that does not pass through this installation's database.
    """
    from app.database import read_only
    from app.domain.note import verifier_key
    from app.domain.trust import format_trust
    from app.errors import ConfigurationError
    from app.notary import keyfile, repository

    settings = settings_of(home)
    with database_of(settings) as database, read_only(database) as session:
        origins = repository.list_origins(session)
    if keyfile.load_last(settings.notary_dir) is None:
        raise ConfigurationError(
            f"{settings.notary_dir} does not know what was signed last, so nothing was signed here yet or its files are"
            " missing; the log of tether serve, or of tether notary, says which"
        )
    key = keyfile.load_key(settings.notary_dir)
    keys = {origin: verifier_key(origin, key) for origin in origins}
    if as_json:
        print_json({"logs": [{"origin": origin, "keys": [str(key)]} for origin, key in keys.items()]})
    else:
        policies = (format_trust(origin, [key]) for origin, key in keys.items())
        out.print("\n".join(policies), end="", soft_wrap=True)


@group.command("show")
def show_log(home: Home = None, as_json: Json = False) -> None:
    """Say which log is written, how long it is, and what was signed of it."""
    from app.database import read_only
    from app.notary import repository

    settings = settings_of(home)
    with database_of(settings) as database, read_only(database) as session:
        log = repository.get_log(session)
        size = repository.count_leaves(session, log.number) if log else 0
        checkpoint = repository.get_checkpoint(session, log.number) if log else None
        pending = len(repository.list_pending_events(session))
    found = {
        "origin": log.origin if log else None,
        "size": size,
        "signed_size": checkpoint.size if checkpoint else 0,
        "signed_at": int(checkpoint.signed_at.timestamp()) if checkpoint else None,
        "root": checkpoint.root if checkpoint else None,
        "pending_events": pending,
    }
    if as_json:
        print_json({"object": "log", **found})
        return
    for name, value in found.items():
        print_line(f"{name:<15} {value if value is not None else 'none yet'}")


@group.command("fork")
def fork(home: Home = None, as_json: Json = False) -> None:
    """Open a new log, because the database is not the one that the notary signed and that one is lost.

    The break stays visible: the new log has another origin, and begins with what was signed of the old one.
    """
    from app.notary.service import fork_log

    settings = settings_of(home)
    with database_of(settings) as database:
        origin = fork_log(database, settings)
    if as_json:
        print_json({"object": "log", "origin": origin})
        return
    print_line(f"opened the log {origin}; the notary goes on with it")
    print_line("next: give auditors the new trust policy, which names both logs: tether log trust")
