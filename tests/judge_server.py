"""A real HTTP server that judges as it is told: well, slowly, wrongly, hugely or not at all."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-canary-7f3a"


class Request(BaseHTTPRequestHandler):
    """One request, with the ways to answer it."""

    server: "JudgeServer"

    def do_POST(self) -> None:
        """Read the request, note it, and answer as the server was told."""
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), self.body))
            number = len(self.server.requests)
            self.server.in_flight += 1
            self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
        try:
            self.server.answer(self, number)
        finally:
            with self.server.lock:
                self.server.in_flight -= 1

    @property
    def asked(self) -> str:
        """Return what the judge was shown: rubric and data."""
        return "\n".join(message["content"] for message in self.body["messages"])

    def start(self, status: int = 200, **headers: str) -> None:
        """Send status and headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def status(self, status: int, **headers: str) -> None:
        """Answer with a status and some text that nobody should ever see."""
        self.start(status, **headers)
        self.wfile.write(b"internal detail " + KEY.encode())

    def text(self, content: Any) -> None:
        """Answer as a chat endpoint whose model wrote `content`."""
        self.start(Content_Type="application/json")
        self.wfile.write(json.dumps({"choices": [{"message": {"content": content}}]}).encode())

    def score(self, score: Any, category: Any = "none") -> None:
        """Answer with a verdict."""
        self.text(json.dumps({"reason": "because", "category": category, "score": score}))

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


Answer = Callable[[Request, int], None]


class JudgeServer(ThreadingHTTPServer):
    """Answers by `answer(request, number)`, the requests counted from 1."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Answer, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Request)
        self.answer = answer
        self.lock = threading.Lock()
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.in_flight = 0
        self.most_in_flight = 0

    @property
    def url(self) -> str:
        """The base URL to configure."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that leaves early is what these tests are about."""


@contextmanager
def serving(answer: Answer, port: int = 0) -> Iterator[JudgeServer]:
    """Serve until the block ends, on a free port unless one is given."""
    with JudgeServer(answer, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
