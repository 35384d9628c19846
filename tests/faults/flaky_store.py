"""An HTTP server in front of an object store: it passes requests on, refuses them, is slow, or hangs up half-way."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Mood = Literal["well", "unavailable", "slow", "cutting"]
SLOW_S = 1.0
DROPPED = {"connection", "transfer-encoding", "keep-alive"}
"""Headers of one connection, which mean nothing on the other."""


class Request(BaseHTTPRequestHandler):
    """One request, answered in the mood of the server."""

    server: "FlakyStore"
    protocol_version = "HTTP/1.1"

    def __getattr__(self, name: str) -> Callable[[], None]:
        # All methods are treated alike; the server looks for do_GET and the like.
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        mood = self.server.take_mood()
        if mood == "unavailable":
            self._send(503, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")
            return
        if mood == "slow":
            time.sleep(SLOW_S)
        status, headers, content = self.server.pass_on(self.command, self.path, self.headers, body)
        self._send(
            status, headers, content[: len(content) // 2] if mood == "cutting" else content, len(content)
        )
        self.close_connection = self.close_connection or mood == "cutting"

    def _send(self, status: int, headers: dict[str, str], content: bytes, size: int | None = None) -> None:
        self.send_response_only(status)
        # The length of the reply to HEAD is that of what is not sent.
        length = headers.pop("Content-Length", None)
        headers["Content-Length"] = (
            length if length is not None else str(len(content) if size is None else size)
        )
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class FlakyStore(ThreadingHTTPServer):
    """Stands before the store at an endpoint."""

    daemon_threads = True

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self._host = urlsplit(endpoint).netloc
        self._lock = threading.Lock()
        self._mood: Mood = "well"
        self.refused: dict[str, int] = {"unavailable": 0, "slow": 0, "cutting": 0}
        """How many requests met each mood."""

    @property
    def url(self) -> str:
        """The endpoint to configure."""
        return f"http://127.0.0.1:{self.server_port}"

    def turn(self, mood: Mood) -> None:
        """Answer in this mood from now on."""
        with self._lock:
            self._mood = mood

    def take_mood(self) -> Mood:
        """Return the mood for one request, and count it."""
        with self._lock:
            if self._mood != "well":
                self.refused[self._mood] += 1
            return self._mood

    def pass_on(
        self, method: str, path: str, headers: http.client.HTTPMessage, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Ask the store and return status, headers and body of its reply."""
        connection = http.client.HTTPConnection(self._host, timeout=60)
        try:
            sent = {name: value for name, value in headers.items() if name.lower() not in DROPPED}
            connection.request(method, path, body=body, headers=sent)
            reply = connection.getresponse()
            content = reply.read()
            kept = {name: value for name, value in reply.getheaders() if name.lower() not in DROPPED}
            return reply.status, kept, content
        finally:
            connection.close()

    def handle_error(self, *_: object) -> None:
        """A client that leaves early is what these tests are about."""


@contextmanager
def flaky_store(endpoint: str) -> Iterator[FlakyStore]:
    """Serve until the block ends."""
    with FlakyStore(endpoint) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
