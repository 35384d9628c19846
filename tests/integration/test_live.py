"""Watching a job: streams, long polls, ETags and the packed curve, while something really writes."""

import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import update

from app import serve
from app.audit.repository import append_leaf
from app.database import read_only, unit_of_work
from app.domain.job import State
from app.domain.risk_curve import build_curve, downsample
from app.jobs import repository, stream, waker
from app.models.base import utc_now
from app.models.tenancy import ApiKey
from app.models.work import Work
from app.serve import Server as StoppingServer
from app.wire_objects import STREAMS
from app.work import repository as work_repository
from app.work import service as work_service
from tests.integration.conftest import Server, Tenant, api_process, refused
from tests.unit.app.domain.leaf_examples import STEP_2

PATH = "/v1/fine_tuning/jobs"
BARE = {name: value for name, value in STEP_2.items() if not name.endswith("sha256")}


class Run:
    """A job and what its owner writes, as the trainer does."""

    def __init__(self, tenant: Tenant) -> None:
        self.database = tenant.server.database
        self.job_id: str = tenant.create_job()["id"]
        self.path = f"{PATH}/{self.job_id}"
        with unit_of_work(self.database) as session:
            work = work_repository.claim(session, self.job_id, owner="test", lease_ms=600_000)
            assert work is not None
            work_repository.move(session, work, State.RUNNING)
            self.epoch = work.epoch

    def step(self, step: int, **changes: Any) -> dict[str, Any]:
        """Do a step: a leaf, a row, an event."""
        record = {**BARE, "step": step, **changes}
        with unit_of_work(self.database) as session:
            self._leaf(session, "step", {**STEP_2, **record})
            job = repository.load_job(session, self.job_id)
            job.step = step
            repository.save_step(session, job, step, record)
            repository.add_event(session, job, f"step {step}", type="metrics", data={"step": step})
        return record

    def say(self, message: str) -> None:
        """Add an event."""
        with unit_of_work(self.database) as session:
            repository.add_event(session, repository.load_job(session, self.job_id), message)

    def fail(self) -> None:
        """End the job."""
        with unit_of_work(self.database) as session:
            work = session.get_one(Work, self.job_id)
            work_service.end(session, work, State.FAILED, {"code": "x", "message": "it broke", "param": None})

    def _leaf(self, session: Any, kind: str, body: dict[str, Any]) -> None:
        append_leaf(session, self.job_id, epoch=self.epoch, kind=kind, body=body)


@pytest.fixture
def run(tenant: Tenant) -> Run:
    """A running job."""
    return Run(tenant)


Message = tuple[str | None, str | None, Any]
"""Event, id, data."""


def messages_of(lines: Iterator[str]) -> Iterator[Message]:
    """Parse server-sent events; a comment is a message without an event."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
        elif fields:
            data = fields.get("data")
            yield fields.get("event"), fields.get("id"), json.loads(data) if data else fields
            fields = {}


@contextmanager
def streaming(tenant: Tenant, path: str, **options: Any) -> Iterator[Iterator[Message]]:
    """Open a stream and give its messages."""
    with tenant.http.stream("GET", f"{path}/stream", **options) as reply:
        assert reply.status_code == 200, reply.read()
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-store, no-transform"
        yield messages_of(reply.iter_lines())


def until(messages: Iterator[Message], found: Callable[[Message], bool]) -> list[Message]:
    """Return the messages up to the first that is it."""
    seen = []
    for message in messages:
        seen.append(message)
        if found(message):
            return seen
    pytest.fail(f"the stream ended before: {[each[:2] for each in seen]}")


def said(text: str) -> Callable[[Message], bool]:
    return lambda message: message[0] == "event" and text in message[2]["message"]


def revoke(tenant: Tenant) -> None:
    """Revoke the tenant's keys as another process would."""
    with unit_of_work(tenant.server.database) as session:
        session.execute(
            update(ApiKey).where(ApiKey.project_id == tenant.project_id).values(revoked_at=utc_now())
        )


class TestStream:
    def test_from_the_first_event_to_the_end(self, tenant: Tenant, run: Run) -> None:
        run.step(1)
        with streaming(tenant, run.path) as messages:
            assert next(messages)[2] == {"retry": str(stream.RETRY_MS)}
            event, _, job = next(messages)
            assert (event, job["id"], job["status"]) == ("job", run.job_id, "running")
            backlog = until(messages, lambda message: message[0] == "step")
            texts = [data["message"] for event, _, data in backlog if event == "event"]
            assert texts[0] == f"Created fine-tuning job: {run.job_id}"
            assert texts[-1] == "step 1"
            record = run.step(2)
            found = until(messages, lambda message: message[0] == "step")
            assert said("step 2")(found[0])
            assert found[-1][2] == record
            run.fail()
            rest = list(messages)
        for event, _, data in (*backlog, *found, *rest):
            STREAMS["stream_job"][str(event)].model_validate(data)
        assert [event for event, _, _ in rest] == ["event", "job", "end"]
        assert rest[1][2]["status"] == "failed"
        assert rest[2][2]["reason"] == "job_ended"

    def test_goes_on_after_the_last_event_that_arrived(self, tenant: Tenant, run: Run) -> None:
        for text in "abc":
            run.say(f"say {text}")
        with streaming(tenant, run.path) as messages:
            last = until(messages, said("say b"))[-1]
        events = tenant.get(f"{run.path}/events")["data"]
        assert last[1] == events[1]["id"]
        run.fail()
        for options in ({"headers": {"last-event-id": last[1]}}, {"params": {"after": last[1]}}):
            with streaming(tenant, run.path, **options) as messages:
                got = [data["message"] for event, _, data in messages if event == "event"]
            assert got == ["say c", "The job failed: it broke"]

    def test_long_backlog_arrives_once_and_in_order(self, tenant: Tenant, run: Run) -> None:
        with unit_of_work(run.database) as session:
            job = repository.load_job(session, run.job_id)
            for number in range(450):
                repository.add_event(session, job, f"say {number}")
                session.flush()
        run.fail()
        with streaming(tenant, run.path) as messages:
            got = [data["message"] for event, _, data in messages if event == "event"]
        assert [text for text in got if text.startswith("say ")] == [f"say {n}" for n in range(450)]

    def test_refusals_come_before_the_stream(self, tenant: Tenant, stranger: Tenant, run: Run) -> None:
        refused(stranger.http.get(f"{run.path}/stream"), 404, param="fine_tuning_job_id")
        refused(tenant.http.get(f"{run.path}/stream", params={"after": "ftevent-x"}), 400, param="after")
        refused(httpx.get(f"{tenant.server.url}{run.path}/stream"), 401)

    def test_revoked_key_ends_it_within_a_second(self, tenant: Tenant, run: Run) -> None:
        with streaming(tenant, run.path) as messages:
            until(messages, lambda message: message[0] == "event")
            revoke(tenant)
            began = time.monotonic()
            rest = list(messages)
            assert time.monotonic() - began < 1.5  # A second, and what a busy machine takes.
        assert rest[-1][0] == "end"
        assert rest[-1][2]["reason"] == "key_revoked"

    def test_silence_is_filled_with_comments(
        self, tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stream, "HEARTBEAT_S", 0.05)
        with streaming(tenant, run.path) as messages:
            until(messages, lambda message: message[0] is None and "" in message[2])

    def test_client_that_leaves_is_forgotten(self, tenant: Tenant, run: Run) -> None:
        watches = tenant.server.app.state.waker._watches
        with streaming(tenant, run.path) as messages:
            until(messages, lambda message: message[0] == "job")
            assert any(watch.job_id == run.job_id for watch in watches)
        deadline = time.monotonic() + 10
        while any(watch.job_id == run.job_id for watch in watches):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_too_many_are_refused(self, tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(waker, "MAX_WATCHERS_OF_A_PROJECT", 1)
        with streaming(tenant, run.path) as messages:
            next(messages)
            refused(tenant.http.get(f"{run.path}/stream"), 429, code="too_many_watchers")

    def test_many_leave_the_rest_unharmed(self, tenant: Tenant, run: Run) -> None:
        streams = 100
        ready = threading.Barrier(streams + 1, timeout=60)
        # A client keeps a limited number of connections.
        tenant.http.close()
        limits = httpx.Limits(max_connections=None)
        tenant.http = httpx.Client(
            base_url=tenant.server.url, headers=tenant.http.headers, timeout=60, limits=limits
        )

        def follow(_: int) -> list[Message]:
            with streaming(tenant, run.path) as messages:
                next(messages)
                ready.wait()
                return list(messages)

        with ThreadPoolExecutor(streams) as threads:
            found = threads.map(follow, range(streams))
            ready.wait()
            # More streams than there are threads for requests, and a request still gets one.
            assert tenant.get(run.path)["status"] == "running"
            record = run.step(7)
            time.sleep(2 * waker.POLL_S)
            run.fail()
            for messages in found:
                assert messages[-1][0] == "end"
                steps = [data for event, _, data in messages if event == "step"]
                assert steps == [record]

    def test_server_that_stops_ends_it_at_once(self, own_server: Any) -> None:
        tenant = own_server()
        run = Run(tenant)
        with streaming(tenant, run.path) as messages:
            until(messages, said("Created"))
            tenant.server.app.state.waker.close()
            rest = list(messages)
        assert rest[-1][2]["reason"] == "shutdown"


class SlowClient:
    """A client of a stream that reads nothing until it is told to."""

    def __init__(self, url: str, key: str, path: str) -> None:
        address = httpx.URL(url)
        self.socket = socket.socket()
        self.socket.settimeout(60)
        # As little as can be set, so that soon nothing more fits between the two.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect((address.host, address.port))
        lines = (
            f"GET {path}/stream HTTP/1.1",
            f"host: {address.host}",
            f"authorization: Bearer {key}",
            "",
            "",
        )
        self.socket.sendall("\r\n".join(lines).encode())

    def read_all(self) -> tuple[list[Message], bool]:
        """Return every message, and whether the reply was brought to its end before the connection was."""
        received = b""
        with self.socket, contextlib.suppress(ConnectionError):
            while not received.endswith(b"\r\n0\r\n\r\n") and (more := self.socket.recv(1 << 20)):
                received += more
        head, _, rest = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            body, rest = body + rest[:length], rest[length + 2 :]
        # Half a message has no empty line behind it, and is none.
        return list(messages_of(iter(body.decode().split("\n")))), received.endswith(b"\r\n0\r\n\r\n")


def watches_of(run: Run, app: FastAPI) -> list[waker.Watch]:
    """Return the open watches of a job."""
    return [watch for watch in app.state.waker._watches if watch.job_id == run.job_id]


def say_until(run: Run, is_enough: Callable[[], bool]) -> list[str]:
    """Fill the log of a job with long lines, which do not fit into any buffer, until something is so."""
    said = []
    deadline = time.monotonic() + 60
    while not is_enough():
        assert time.monotonic() < deadline
        said.append(f"say {len(said)} {'x' * 200_000}")
        run.say(said[-1])
        time.sleep(0.02)
    return said


class TestSlowClient:
    def test_one_that_fetches_too_little_is_told_and_comes_back(
        self, tenant: Tenant, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waker, "POLL_S", 0.01)
        monkeypatch.setattr(waker, "MAX_WAITING_UPDATES", 3)
        client = SlowClient(tenant.server.url, tenant.key, run.path)
        wait_until(lambda: bool(watches_of(run, tenant.server.app)))
        (watch,) = watches_of(run, tenant.server.app)
        texts = say_until(run, lambda: watch.ended is not None)
        messages, is_whole = client.read_all()
        assert is_whole
        assert messages[-1][0] == "end"
        assert messages[-1][2]["reason"] == "slow_client"
        run.fail()
        last = [id for event, id, _ in messages if event == "event"][-1]
        assert last is not None
        with streaming(tenant, run.path, headers={"last-event-id": last}) as rest:
            messages += list(rest)
        got = [data["message"] for event, _, data in messages if event == "event"]
        assert [text for text in got if text.startswith("say ")] == texts
        assert messages[-1][2]["reason"] == "job_ended"

    def test_one_that_takes_nothing_is_cut_off_and_leaves_nothing(
        self, own_server: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waker, "POLL_S", 0.01)
        monkeypatch.setattr(stream, "SEND_TIMEOUT_S", 0.3)
        monkeypatch.setattr(serve, "UNREAD_TIMEOUT_S", 0.5)
        tenant = own_server()
        run = Run(tenant)
        client = SlowClient(tenant.server.url, tenant.key, run.path)
        wait_until(lambda: bool(watches_of(run, tenant.server.app)))
        say_until(run, lambda: not watches_of(run, tenant.server.app))
        # The connection goes, too, though its client lives: it would hold a file and what was not fetched.
        wait_until(
            lambda: not is_open_here(httpx.URL(tenant.server.url).port, client.socket.getsockname()[1])
        )
        messages, is_whole = client.read_all()
        assert not is_whole
        assert "end" not in [event for event, _, _ in messages]
        # Nobody else is harmed.
        with streaming(tenant, run.path) as others:
            until(others, said("Created"))


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for something that is bound to happen."""
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_open_here(port: int | None, of: int) -> bool:
    """Say whether a process holds the end at `port` of a connection that comes from the port `of`."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, *rest = line.split()
        if (int(local.split(":")[1], 16), int(remote.split(":")[1], 16)) == (port, of):
            return int(rest[6]) != 0  # The inode: one that no process holds has none.
    return False


def test_server_that_is_stopped_ends_what_waits_and_leaves_with_code_0(tenant: Tenant, run: Run) -> None:
    with api_process(tenant.server.settings) as (url, process, log):
        # One that will never read what is written to it, which must not keep the server either.
        stuck = SlowClient(url, tenant.key, run.path)
        run.say("x" * 8_000_000)
        with (
            httpx.Client(base_url=url, headers=tenant.http.headers, timeout=60) as client,
            ThreadPoolExecutor(1) as thread,
            client.stream("GET", f"{run.path}/stream") as reply,
        ):
            etag = client.get(run.path).headers["etag"]
            poll = thread.submit(
                client.get, run.path, params={"wait": 60}, headers={"if-none-match": etag}, timeout=90
            )
            messages = messages_of(reply.iter_lines())
            until(messages, said("xxx"))
            process.send_signal(signal.SIGTERM)
            rest = list(messages)
            assert rest[-1][0] == "end"
            assert rest[-1][2]["reason"] == "shutdown"
            assert poll.result().status_code == 304
        # The grace of the container, docker-compose.yml.
        assert process.wait(20) == 0, log.read_text()
        stuck.socket.close()


class TestLongPoll:
    @pytest.mark.parametrize("path", ["", "/risk"])
    def test_same_is_not_sent_again(self, tenant: Tenant, run: Run, path: str) -> None:
        first = tenant.http.get(run.path + path)
        etag = first.headers["etag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            again = tenant.http.get(run.path + path, headers={"if-none-match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        run.step(1)
        changed = tenant.http.get(run.path + path, headers={"if-none-match": etag})
        assert changed.status_code == 200
        assert changed.headers["etag"] != etag

    @pytest.mark.parametrize("path", ["", "/risk"])
    def test_waits_for_a_change_and_no_longer(self, tenant: Tenant, run: Run, path: str) -> None:
        headers = {"if-none-match": tenant.http.get(run.path + path).headers["etag"]}
        waiting = {"params": {"wait": 30}, "headers": headers}
        with ThreadPoolExecutor(1) as thread:
            reply = thread.submit(tenant.http.get, run.path + path, **waiting)
            time.sleep(0.3)
            assert not reply.done()
            run.step(1)
            began = time.monotonic()
            assert reply.result().status_code == 200
            assert time.monotonic() - began < 5
        began = time.monotonic()
        headers["if-none-match"] = reply.result().headers["etag"]
        still = tenant.http.get(run.path + path, params={"wait": 0.3}, headers=headers)
        assert still.status_code == 304
        assert 0.3 <= time.monotonic() - began < 5

    def test_revoked_key_ends_it(self, tenant: Tenant, run: Run) -> None:
        headers = {"if-none-match": tenant.http.get(run.path).headers["etag"]}
        with ThreadPoolExecutor(1) as thread:
            reply = thread.submit(tenant.http.get, run.path, params={"wait": 30}, headers=headers)
            time.sleep(0.3)
            revoke(tenant)
            refused(reply.result(timeout=10), 401)

    def test_wait_has_a_bound(self, tenant: Tenant, run: Run) -> None:
        refused(tenant.http.get(run.path, params={"wait": 61}), 400, param="wait")


class TestPackedCurve:
    def test_is_the_curve_of_all_records(self, tenant: Tenant, run: Run, monkeypatch: Any) -> None:
        monkeypatch.setattr(repository, "STEPS_A_PIECE", 8)
        records = [run.step(step, risk_mean=step % 7 / 7, risk_max=step % 5 / 5) for step in range(1, 31)]
        with unit_of_work(run.database) as session:
            repository.save_drift(session, repository.load_job(session, run.job_id), 30, 0.5)
        records[-1]["drift"] = 0.5
        with read_only(run.database) as session:
            pieces, rest = repository.load_curve(session, repository.load_job(session, run.job_id))
        assert len(pieces) == 3
        assert [record["step"] for record in rest] == list(range(25, 31))
        expected = build_curve(records)
        assert tenant.get(f"{run.path}/risk")["rows"] == expected["rows"]
        fewer = tenant.get(f"{run.path}/risk", max_points=10)["rows"]
        assert fewer == downsample(expected["rows"], 10)

    def test_steps_that_a_crash_threw_away_are_in_no_piece(
        self, tenant: Tenant, run: Run, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(repository, "STEPS_A_PIECE", 8)
        for step in range(1, 20):
            run.step(step, risk_max=0.9)
        with unit_of_work(run.database) as session:
            repository.forget_steps(session, repository.load_job(session, run.job_id), after=10)
        for step in range(11, 27):
            run.step(step, risk_max=0.1)
        rows = tenant.get(f"{run.path}/risk")["rows"]
        assert [(row[0], row[2]) for row in rows] == [(n, 0.9 if n <= 10 else 0.1) for n in range(1, 27)]


def test_serve_tells_the_waker_that_it_stops(server: Server) -> None:
    assert StoppingServer(server.app).config.app is server.app
