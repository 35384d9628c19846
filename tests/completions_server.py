"""A server of OpenAI's completions for the tests of the canary: real models answer, and it knows echo and logprobs."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LogProbs = Callable[[list[int]], list[float]]
"""From the ids of a prompt to the log-probability of each but the first."""


@contextmanager
def serving_completions(models: dict[str, LogProbs], *, echo: bool = True) -> Iterator[str]:
    """Serve models by name; give the base URL. Without `echo` it answers as a server that does not know it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path != "/v1/completions" or body["model"] not in models:
                self._reply(404, {"error": {"message": f"no model {body.get('model')}"}})
                return
            said = [None, *models[body["model"]](body["prompt"])] if echo and body["echo"] else []
            # The token that max_tokens asks for comes behind the prompt's.
            chosen = {"token_logprobs": [*said, -0.25], "tokens": ["?"] * (len(said) + 1)}
            self._reply(200, {"object": "text_completion", "choices": [{"text": "?", "logprobs": chosen}]})

        def _reply(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
