"""tether webhooks"""

from typing import Annotated

import typer

from app.cli.common import DEFAULT_URL, Home, Key, Url, connect, database_of, settings_of
from app.cli.output import Json, make_flag, print_json, print_line, print_list, show_time

MAX_LISTED = 1000
PATH = "webhook_endpoints"
EVENTS = "fine_tuning."
"""What the names of all events begin with; a person need not type it."""

group = typer.Typer(
    no_args_is_help=True, help="Webhooks of a server: who is told when something happens to a job."
)
EndpointId = Annotated[
    str, typer.Argument(metavar="ID", help="Id of the endpoint, as `tether webhooks list` shows it.")
]


@group.command("deliver")
def deliver(home: Home = None) -> None:
    """Deliver the webhooks of this machine's installation, and its checkpoint to TETHER_ANCHOR_URL; so does `tether serve`."""
    import threading

    from app.cli.parts import stopped_by_signals
    from app.notary.anchor import run_anchor
    from app.webhooks.delivery import run_deliveries

    settings = settings_of(home)
    with database_of(settings) as database:
        stop = stopped_by_signals()
        anchor = threading.Thread(target=run_anchor, args=(database, settings, stop), name="anchor")
        anchor.start()
        run_deliveries(database, settings, stop)
        anchor.join()


@group.command("list")
def list_endpoints(url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """List the project's endpoints, newest first, without their secrets."""
    with connect(url, key) as server:
        found = server.get_all(PATH, limit=MAX_LISTED)
    if as_json:
        print_json(found)
        return
    print_list(
        ("id", "name", "URL", "events", "secret", "state", "added at"),
        [
            (
                each["id"],
                each["name"],
                each["url"],
                " ".join(shorten(name) for name in each["event_types"]),
                each["signing_secret_hint"],
                "enabled" if each["enabled"] else f"disabled: {each['disabled_reason'] or 'by somebody'}",
                show_time(each["created_at"]),
            )
            for each in found["data"]
        ],
        empty="no webhooks yet; add one with: tether webhooks add https://HOST/PATH --name NAME",
    )


@group.command("add")
def add_endpoint(
    address: Annotated[str, typer.Argument(metavar="URL", help="HTTPS address that events are sent to.")],
    name: Annotated[str, typer.Option(help="What people call the endpoint.")],
    event: Annotated[
        list[str] | None,
        typer.Option(
            help="An event to be told of, such as job.failed; may be given again. Default: every one that there is.",
            show_default=False,
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Add an endpoint and print its signing secret, which happens only now."""
    with connect(url, key) as server:
        types = [lengthen(each) for each in event] if event else server.get("webhook_event_types")["data"]
        body = {"name": name, "url": address, "event_types": types}
        made = server.call("POST", PATH, json=body)
    if as_json:
        print_json(made)
        return
    print_line(f"added {made['id']}; its signing secret, shown only now: {made['signing_secret']}")
    print_line(f"try it with: tether webhooks test {made['id']}")


@group.command("test")
def test_endpoint(
    endpoint_id: EndpointId,
    event: Annotated[str, typer.Option(help="The event to send a sample of.")] = "job.succeeded",
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Send a sample event now, once, and say what the receiver answered."""
    with connect(url, key) as server:
        done = server.call("POST", PATH, endpoint_id, "test", json={"event_type": lengthen(event)})
    if as_json:
        print_json(done)
    else:
        print_line(f"sent {done['event_type']} to {endpoint_id}; it answered {done['status_code']}")


@group.command("enable")
def enable_endpoint(
    endpoint_id: EndpointId, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Send events to an endpoint again that was disabled because it took none."""
    with connect(url, key) as server:
        endpoint = server.call("POST", PATH, endpoint_id, json={"enabled": True})
    if as_json:
        print_json(endpoint)
    else:
        print_line(f"{endpoint_id} is enabled; what it missed: tether webhooks deliveries {endpoint_id}")


@group.command("rotate")
def rotate_secret(
    endpoint_id: EndpointId,
    keep_old: Annotated[
        bool,
        make_flag("--keep-old", "Let the old secret sign too for a day, while the receiver changes over."),
    ] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Give an endpoint a new signing secret and print it, which happens only now."""
    body = {"keep_old_secret_active_for_24_hours": keep_old}
    with connect(url, key) as server:
        made = server.call("POST", PATH, endpoint_id, "rotate_secret", json=body)
    if as_json:
        print_json(made)
        return
    print_line(f"signing secret of {made['id']}, shown only now: {made['signing_secret']}")
    until = show_time(made["old_secret_expires_at"])
    print_line(
        "the old one signs nothing any more" if until is None else f"the old one signs too until {until}"
    )


@group.command("delete")
def delete_endpoint(
    endpoint_id: EndpointId, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Delete an endpoint, its secrets and its log."""
    with connect(url, key) as server:
        answer = server.call("DELETE", PATH, endpoint_id)
    if as_json:
        print_json(answer)
    else:
        print_line(f"deleted {answer['id']}")


@group.command("deliveries")
def list_deliveries(
    endpoint_id: EndpointId,
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 20,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List what was sent to an endpoint, or is to be sent, newest first."""
    with connect(url, key) as server:
        found = server.get_all(PATH, endpoint_id, "deliveries", limit=limit)
    if as_json:
        print_json(found)
        return
    print_list(
        ("id", "event", "noted at", "status", "attempts", "last at", "answer", "next at", "error"),
        [
            (
                each["id"],
                shorten(each["event_type"]),
                show_time(each["created_at"]),
                each["status"],
                each["attempts"],
                show_time(each["attempted_at"]),
                each["status_code"],
                show_time(each["next_attempt_at"]),
                each["error"],
            )
            for each in found["data"]
        ],
        empty=f"nothing was sent to {endpoint_id} yet; try it with: tether webhooks test {endpoint_id}",
    )


@group.command("redeliver")
def redeliver(
    endpoint_id: EndpointId,
    delivery_id: Annotated[
        str, typer.Argument(metavar="DELIVERY", help="Id, as `tether webhooks deliveries` shows it.")
    ],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Send an event again, with the same id."""
    with connect(url, key) as server:
        delivery = server.call("POST", PATH, endpoint_id, "deliveries", delivery_id, "redeliver")
    if as_json:
        print_json(delivery)
    else:
        print_line(f"{delivery_id} is sent again; how it went: tether webhooks deliveries {endpoint_id}")


def shorten(event_type: str) -> str:
    """Return an event's name without what all of them begin with."""
    return event_type.removeprefix(EVENTS)


def lengthen(event_type: str) -> str:
    """Return the whole name of an event that may be given in short."""
    return EVENTS + shorten(event_type)
