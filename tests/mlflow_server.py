"""A stand-in for an MLflow tracking server: the calls that Tether makes, with the fields and the strictness of MLflow's.

It speaks HTTP and remembers; what MLflow itself makes of the same calls, `test_exports.py` tries where
`TETHER_TEST_MLOPS` names a Python that has it.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

FIELDS = {
    "experiments/create": {"name"},
    "runs/search": {"experiment_ids", "filter", "max_results"},
    "runs/create": {"experiment_id", "run_name", "start_time", "tags"},
    "runs/log-batch": {"run_id", "metrics", "params", "tags"},
    "runs/update": {"run_id", "status", "end_time"},
}


@dataclass
class Tracking:
    """What the server was told."""

    url: str = ""
    experiments: list[str] = field(default_factory=list)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)
    """What some calls answer with for now: status and error code."""

    def answer(self, call: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Do a call."""
        self.calls.append(call)
        if call in self.broken:
            status, code = self.broken[call]
            return status, {"error_code": code, "message": "a message with somebody's secret"}
        if call == "experiments/get-by-name":
            name = body["experiment_name"]
            if name not in self.experiments:
                return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}
            number = str(self.experiments.index(name))
            return 200, {"experiment": {"experiment_id": number, "name": name, "lifecycle_stage": "active"}}
        assert body.keys() <= FIELDS[call], f"{call}: {body.keys() - FIELDS[call]}"
        if call == "experiments/create":
            self.experiments.append(body["name"])
            return 200, {"experiment_id": str(len(self.experiments) - 1)}
        if call == "runs/search":
            match = re.fullmatch(r"tags\.`([^`]+)` = '([^']+)'", body["filter"])
            assert match is not None
            found = [run for run in self.runs.values() if run["tags"].get(match[1]) == match[2]]
            return 200, {"runs": [{"info": {"run_id": run["id"]}} for run in found]}
        if call == "runs/create":
            run_id = f"run{len(self.runs)}"
            tags = {each["key"]: each["value"] for each in body["tags"]}
            self.runs[run_id] = {**body, "id": run_id, "tags": tags, "metrics": set(), "params": {}}
            return 200, {"run": {"info": {"run_id": run_id}}}
        return self._change(call, body)

    def _change(self, call: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        run = self.runs[body["run_id"]]
        if call == "runs/update":
            run |= body
            return 200, {}
        assert len(body["metrics"]) <= 1000
        assert len(body["params"]) <= 100
        for each in body["metrics"]:
            assert each.keys() == {"key", "value", "timestamp", "step"}
            run["metrics"].add(tuple(each[name] for name in ("key", "step", "value", "timestamp")))
        for each in body["params"]:
            if run["params"].setdefault(each["key"], each["value"]) != each["value"]:
                return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "changed"}
        run["tags"] |= {each["key"]: each["value"] for each in body["tags"]}
        return 200, {}


@contextmanager
def mlflow_server() -> Iterator[Tracking]:
    """Run the stand-in on a free port."""
    tracking = Tracking()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self, body: dict[str, Any]) -> None:
            tracking.tokens.add(self.headers["authorization"])
            prefix, _, call = urlsplit(self.path).path.partition("/api/2.0/mlflow/")
            assert prefix == ""
            status, found = tracking.answer(call, body)
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            self._reply({name: values[0] for name, values in query.items()})

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tracking.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield tracking
    finally:
        server.shutdown()
        server.server_close()
