"""A real HTTP server that receives webhooks as it is told: well, slowly, hugely, or not at all."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

CANARY = "canary-of-the-reply-9c1f"
"""In every reply, so that tests can look for what must be nowhere."""


class Received(NamedTuple):
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes


class Request(BaseHTTPRequestHandler):
    """One request, with the ways to answer it."""

    server: "Receiver"

    def do_POST(self) -> None:
        """Read the request, note it, and answer as the server was told."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.received.append(Received(self.path, headers, body))
        with suppress(OSError):
            self.server.answer(self)

    def reply(self, status: int = 200, **headers: str) -> None:
        """Answer with a status and a text that nobody should ever see."""
        self.send_response(status, CANARY)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(CANARY.encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


Answer = Callable[[Request], None]


class Receiver(ThreadingHTTPServer):
    """Keeps what it receives, and answers by `answer(request)`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Answer, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), Request)
        self.answer = answer
        self.received: list[Received] = []
        self.connections = 0
        self.scheme = "http"

    def get_request(self) -> Any:
        """Count a connection."""
        self.connections += 1
        return super().get_request()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.server_port}/hook?a=b"

    def handle_error(self, *_: Any) -> None:
        """A sender that leaves early is what these tests are about."""


@contextmanager
def receiving(
    answer: Answer = Request.reply, context: ssl.SSLContext | None = None, port: int = 0
) -> Iterator[Receiver]:
    """Receive until the block ends, with TLS where a context is given, on a free port unless one is given."""
    with Receiver(answer, port=port) as receiver:
        if context is not None:
            receiver.socket = context.wrap_socket(receiver.socket, server_side=True)
            receiver.scheme = "https"
        thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join()
