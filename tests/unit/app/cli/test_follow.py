"""The stream of a job as the command reads it, and the picture that it draws."""

import io
from collections.abc import Iterator

import httpx
import pytest
from rich.console import Console

from app.cli import follow
from app.cli.client import Server, Unreachable
from app.cli.follow import Message, Picture, follow_messages, read_messages
from app.errors import TetherError

STREAM = (
    'retry: 2000\n\n: heartbeat\n\nevent: job\ndata: {"status": "running"}\n\n'
    'id: e1\nevent: event\ndata: {"message": "a\u2028b"}\r\n\r\n'
    'event: end\ndata: {"reason":\ndata: "job_ended"}\n\n'
).encode()
MESSAGES = [
    Message("job", "", {"status": "running"}),
    Message("event", "e1", {"message": "a\u2028b"}),
    Message("end", "", {"reason": "job_ended"}),
]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_messages_are_read_however_they_are_cut(size: int) -> None:
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert list(read_messages(pieces)) == MESSAGES


def test_message_that_was_cut_off_is_none() -> None:
    assert list(read_messages([STREAM[:-1]])) == MESSAGES[:-1]


@pytest.mark.parametrize("data", ["no JSON", "[1]", "\u00ff"])
def test_what_is_no_message_is_said_to_be_none(data: str) -> None:
    with pytest.raises(Unreachable, match="not of Tether's stream"):
        list(read_messages([f"event: job\ndata: {data}\n\n".encode("latin-1")]))


class Stream(httpx.SyncByteStream):
    """A reply that breaks off after its pieces unless it ends in words."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        if not self.pieces[-1].startswith(b"event: end"):
            raise httpx.RemoteProtocolError("peer closed connection")


EVENT = b'id: e%d\nevent: event\ndata: {"message": "%d"}\n\n'
END = b'event: end\ndata: {"reason": "%s", "message": "why"}\n\n'


def server_of(replies: list[Stream | Exception], asked: list[str | None]) -> Server:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("last-event-id"))
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(200, stream=reply)

    return Server(httpx.Client(transport=httpx.MockTransport(answer), base_url="http://t"), "http://t")


def test_stream_goes_on_after_breaks_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL_S", 0.001)
    asked: list[str | None] = []
    replies: list[Stream | Exception] = [
        Stream(EVENT % (1, 1), EVENT % (2, 2)),
        httpx.ConnectError("restarting"),
        Stream(EVENT % (3, 3), END % b"shutdown"),
        Stream(EVENT % (4, 4), END % b"job_ended"),
    ]
    seen = [message.id for message in follow_messages(server_of(replies, asked), "ftjob-1")]
    assert seen == ["e1", "e2", "e3", "e4"]
    assert asked == [None, "e2", "e2", "e3"]


def test_stream_of_a_revoked_key_ends_with_its_reason() -> None:
    with pytest.raises(TetherError, match="why"):
        list(follow_messages(server_of([Stream(END % b"key_revoked")], []), "ftjob-1"))


def test_stream_of_a_job_that_paused_itself_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    job = b'event: job\ndata: {"status": "paused", "safety": {"pause_reason": %s}}\n\n'
    by_somebody, by_itself = Stream(EVENT % (1, 1), job % b"null"), Stream(job % b'"drift"', EVENT % (2, 2))
    monkeypatch.setattr(follow, "POLL_S", 0.001)
    seen = list(follow_messages(server_of([by_somebody, by_itself], []), "ftjob-1"))
    assert [message.name for message in seen] == ["event", "job", "job"], "one that somebody paused goes on"
    assert seen[-1].data["safety"]["pause_reason"] == "drift"


def test_server_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL_S", 0.001)
    monkeypatch.setattr(follow, "PATIENCE_S", 0.02)
    replies: list[Stream | Exception] = [Stream(EVENT % (1, 1)), *[httpx.ConnectError("away")] * 1000]
    with pytest.raises(Unreachable, match="away"):
        list(follow_messages(server_of(replies, []), "ftjob-1"))


def draw(picture: Picture) -> str:
    console = Console(file=io.StringIO(), width=120, markup=False, emoji=False)
    console.print(picture.draw())
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_picture_shows_state_steps_curves_and_events() -> None:
    picture = Picture()
    picture.take(Message("job", "", {"id": "ftjob-1", "status": "running", "safety": {"state": "starting"}}))
    assert "ftjob-1  starting" in draw(picture)
    event = {"created_at": 0, "level": "warn", "message": "bad\x1b[2J"}
    for number in range(9):
        picture.take(Message("event", "", {**event, "message": f"{event['message']}{number}"}))
    picture.take(Message("step", "", {"step": 3}))
    picture.curve = {
        "columns": ["step", "risk_max", "risk_smoothed", "beta_mean"],
        "rows": [[1, 0.0, None, 0.1], [2, 1.0, None, 0.9], [3, 0.5, None, 0.5]],
        "total_steps": 6,
    }
    shown = draw(picture)
    assert "step 3 of 6" in shown
    lines = shown.splitlines()
    assert lines[1] == "━" * 30 + "┄" * 30
    assert lines[2] == "risk, highest row   ▁█▅ 0.500"
    assert lines[3] == "beta, mean          ▁█▅ 0.500"
    assert "smoothed" not in shown, "what was not measured has no line"
    assert r"bad\x1b[2J8" in shown
    assert "bad\\x1b[2J2" not in shown, "only the newest events are shown"
    assert shown.replace("\n", "").isprintable()
