"""tether policies"""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.common import A_FILE, DEFAULT_URL, Key, Url, connect
from app.cli.output import Json, print_json, print_line, print_list, show_time

PATH = "policies"

group = typer.Typer(
    no_args_is_help=True,
    help="Safety policies of a server: what jobs must hold. All but in-force are for operators.",
)
PolicyId = Annotated[
    str, typer.Argument(metavar="POLICY", help="Id of the policy, as `tether policies list` shows it.")
]


@group.command("list")
def list_policies(
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 50,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List the stored policies, newest first."""
    with connect(url, key) as server:
        found = server.get_all(PATH, limit=limit)
    if as_json:
        print_json(found)
        return
    print_list(
        ("id", "name", "version", "gate", "SHA-256", "stored at"),
        [
            (
                each["id"],
                each["name"],
                each["version"],
                describe_limits(each["policy"].get("gate")),
                each["sha256"][:12],
                show_time(each["created_at"]),
            )
            for each in found["data"]
        ],
        empty="no policies yet; store one with: tether policies put FILE",
    )


@group.command("get")
def get_policy(policy_id: PolicyId, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """Print a policy as it was stored."""
    with connect(url, key) as server:
        found = server.get(PATH, policy_id)
    if as_json:
        print_json(found)
        return
    for line in found["content"].splitlines():
        print_line(line)


@group.command("in-force")
def show_policy_in_force(url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """Print the policy that new jobs of the key's project are held to, and which presets it refuses."""
    with connect(url, key) as server:
        found = server.get(PATH, "in_force")
    if as_json:
        print_json(found)
        return
    whose = found["id"] or "the installation's"
    print_line(f"{found['name']} version {found['version']} ({whose}), SHA-256 {found['sha256']}")
    print_line(f"gate: {describe_limits(found['policy'].get('gate')) or 'none'}")
    for name, preset in found["presets"].items():
        verdict = f"refused: {preset['refused']['message']}" if preset["refused"] else "allowed"
        print_line(f"preset {name}: {verdict}{'' if preset['protected'] else ' (unprotected)'}")


@group.command("put")
def put_policy(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The policy, as TOML.", **A_FILE)],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Store a version of a policy. The same file again changes nothing."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{file} is not UTF-8 text") from None
    with connect(url, key) as server:
        stored = server.call("POST", PATH, json={"toml": text})
    if as_json:
        print_json(stored)
        return
    print_line(
        f"stored {stored['id']}: {stored['name']} version {stored['version']}, SHA-256 {stored['sha256']}"
    )
    print_line(f"next: tether policies assign {stored['id']} --project PROJECT")


@group.command("assign")
def assign_policy(
    project: Annotated[str, typer.Option(help="Id of the project.")],
    policy_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[POLICY]",
            help="Id of the policy. Without one the project has the installation's again.",
            show_default=False,
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Give a project a policy for the jobs that it creates from now on."""
    with connect(url, key) as server:
        changed = server.call("PATCH", "projects", project, json={"policy": policy_id})
    if as_json:
        print_json(changed)
    else:
        held = f"the policy {policy_id}" if policy_id else "the installation's policy"
        print_line(f"{project} ({changed['name']}) has {held} from now on")


def describe_limits(gate: dict[str, Any] | None) -> str | None:
    """Return the limits of a gate in a line; None without one."""
    if gate is None:
        return None
    limits = {name: value for name, value in gate.items() if isinstance(value, dict) and "action" in value}
    return ", ".join(
        f"{name} {'≥' if 'least' in each else '≤'} {each.get('least', each.get('most')):g}: {each['action']}"
        for name, each in limits.items()
    )
