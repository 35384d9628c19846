"""Following a job live: its events, its steps, and its risk as a line that grows."""

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from app.cli.client import Server, Unreachable
from app.cli.jobs import JOBS
from app.cli.output import can_draw, clean, get_in, out, show_time, state_of
from app.cli.risk import CURVES, LABEL_WIDTH, column_of
from app.cli.sparkline import sparkline
from app.cli.watch import PATIENCE_S, POLL_S, waits_for_person
from app.errors import TetherError

EVENTS_SHOWN = 6
POINTS = 400
CURVE_EVERY_S = 1.0
WIDTH = 60


class Message(NamedTuple):
    """One server-sent event."""

    name: str
    id: str
    data: dict[str, Any]


def read_messages(pieces: Iterable[bytes]) -> Iterator[Message]:
    """Yield the messages of a stream of server-sent events, whose data are JSON objects."""
    fields: dict[bytes, list[bytes]] = {}
    for line in _lines(pieces):
        if line:
            name, _, value = line.partition(b":")
            fields.setdefault(name, []).append(value.removeprefix(b" "))
            continue
        if b"data" in fields:
            try:
                data = dict(json.loads(b"\n".join(fields[b"data"])))
                name_, id_ = (fields.get(each, [b""])[-1].decode("ascii") for each in (b"event", b"id"))
            except (ValueError, TypeError):
                raise Unreachable("the server sent a message that is not of Tether's stream") from None
            yield Message(name_, id_, data)
        fields = {}


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r")


def follow_messages(server: Server, job_id: str) -> Iterator[Message]:
    """Yield what happens to a job until it has ended, paused itself or is held, through breaks of the connection."""
    seen = ""
    alive_at: float | None = None
    while True:
        headers = {"accept": "text/event-stream", **({"last-event-id": seen} if seen else {})}
        try:
            with server.stream(*JOBS, job_id, "stream", headers=headers) as reply:
                for message in read_messages(reply.iter_raw()):
                    alive_at = time.monotonic()
                    seen = message.id or seen
                    reason = message.data.get("reason") if message.name == "end" else None
                    if reason == "job_ended":
                        return
                    if reason == "key_revoked":
                        raise TetherError(str(message.data.get("message")))
                    if reason is None:
                        yield message
                    if message.name == "job" and waits_for_person(message.data):
                        return
        except Unreachable:
            # A server that is away from the start is told at once.
            if alive_at is None or time.monotonic() - alive_at > PATIENCE_S:
                raise
        time.sleep(POLL_S)


def follow(server: Server, job_id: str, *, as_json: bool) -> dict[str, Any]:
    """Show a job until it has ended or waits for a person, and return it: JSON objects, a picture that moves, or a line an event."""
    if as_json or not can_draw(out):
        for message in follow_messages(server, job_id):
            if as_json:
                out.print(json.dumps(message._asdict()).replace("\x7f", "\\u007f"))
            elif message.name == "event":
                out.print(describe_event(message.data))
        return server.get(*JOBS, job_id)
    picture = Picture()
    curve_at = 0.0
    with Live(console=out, auto_refresh=False) as live:
        for message in follow_messages(server, job_id):
            picture.take(message)
            if message.name == "step" and time.monotonic() - curve_at > CURVE_EVERY_S:
                curve_at = time.monotonic()
                # The steps that come are only the newest ones; a spike between two of them is in the curve.
                picture.curve = server.get(*JOBS, job_id, "risk", max_points=POINTS)
            live.update(picture.draw(), refresh=True)
        picture.job = server.get(*JOBS, job_id)
        picture.curve = server.get(*JOBS, job_id, "risk", max_points=POINTS)
        live.update(picture.draw(), refresh=True)
    return picture.job


class Picture:
    """What is known of a job that is being followed, and how it looks on a terminal."""

    def __init__(self) -> None:
        self.job: dict[str, Any] = {}
        self.step = 0
        self.curve: dict[str, Any] | None = None
        self.events: deque[str] = deque(maxlen=EVENTS_SHOWN)

    def take(self, message: Message) -> None:
        """Add what a message says."""
        if message.name == "job":
            self.job = message.data
            self.step = max(self.step, get_in(self.job, "training", "steps_completed") or 0)
        elif message.name == "step":
            self.step = message.data["step"]
        elif message.name == "event":
            self.events.append(describe_event(message.data))

    def draw(self) -> RenderableType:
        """Return the picture: state, steps, the curves so far, the newest events."""
        total = get_in(self.curve, "total_steps") or get_in(self.job, "training", "total_steps")
        steps = f"step {self.step} of {total or '?'}"
        head = f"{self.job.get('id', '')}  {state_of(self.job)}  {self.job.get('model', '')}  {steps}"
        done = min(WIDTH, max(1, WIDTH * self.step // total)) if total else 0
        lines = [Text(clean(head)), Text("━" * done + "┄" * (WIDTH - done))]
        if self.curve is not None:
            for label, name in CURVES:
                measured = [value for value in column_of(self.curve, name) if value is not None]
                if measured:
                    drawn = sparkline(column_of(self.curve, name), done or WIDTH)
                    lines.append(Text(f"{label:<{LABEL_WIDTH}}{drawn} {measured[-1]:.3f}"))
        return Group(*lines, *map(Text, self.events))


def describe_event(event: dict[str, Any]) -> str:
    """Return an event as a line."""
    return clean(f"{show_time(event['created_at'])}  {event['level']:<5}  {event['message']}")
