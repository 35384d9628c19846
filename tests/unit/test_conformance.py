"""What `make conformance` prints of generated requests, with schemathesis against a small server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conformance.__main__ import try_phase

REPLY = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
NUMBER = {"name": "number", "in": "query", "required": True, "schema": {"type": "integer"}}
DESCRIPTION = {
    "openapi": "3.1.0",
    "info": {"title": "small", "version": "1"},
    "paths": {
        f"/{name}": {
            "get": {
                "operationId": name,
                "parameters": [NUMBER],
                "responses": {
                    "200": {"description": "well", "content": {"application/json": {"schema": REPLY}}},
                    "405": {"description": "another method"},
                },
            }
        }
        for name in ("good", "bad")
    },
}


@pytest.fixture
def url() -> Iterator[str]:
    """A server of which one operation is as described and one is not."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = json.dumps({"a": 1}).encode()
            path = self.path.partition("?")[0]
            content = {"/openapi.json": json.dumps(DESCRIPTION).encode(), "/good": good}.get(
                path, b"broken inside"
            )
            self.send_response(200 if path != "/bad" else 500)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def refuse(self) -> None:
            self.send_response(405)
            self.send_header("content-length", "0")
            self.end_headers()

        do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_HEAD = refuse  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_failure_has_its_operation_request_and_reply(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not try_phase(url, "fuzzing", tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith("FAIL  schemathesis fuzzing (")
    for expected in ("GET /bad", "curl -X GET", f"{url}/bad?number=", "[500]", "broken inside"):
        assert expected in printed
    assert f"{url}/good" not in printed.partition("FAILURES")[2]
