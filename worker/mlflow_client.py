"""MLflow's REST API: the six calls that a job needs to become a run. No client library, no artefact store."""

from types import TracebackType
from typing import Any

import httpx

from app.errors import JobFailure
from app.settings import Settings

BATCH_METRICS = 1000
"""MLflow's limit of one log-batch."""
MAX_VALUE = 500
"""Every MLflow takes parameters of this length."""


class MlflowUnavailable(Exception):
    """The tracking server did not do it, and may do it later; the text may be shown."""


class MlflowClient:
    """One tracking server."""

    def __init__(self, settings: Settings) -> None:
        token = settings.mlflow_token
        self._http = httpx.Client(
            base_url=settings.mlflow_tracking_uri.rstrip("/") + "/api/2.0/mlflow/",
            headers={} if token is None else {"authorization": f"Bearer {token.get_secret_value()}"},
            timeout=30.0,
            # Neither a proxy nor a .netrc of the machine has any business here.
            trust_env=False,
            follow_redirects=False,
        )

    def __enter__(self) -> "MlflowClient":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._http.close()

    def ensure_experiment(self, name: str) -> str:
        """Return the id of an experiment, made where it is missing."""
        found = self._find_experiment(name)
        if found is None:
            self._send("POST", "experiments/create", json={"name": name}, passed={"RESOURCE_ALREADY_EXISTS"})
            found = self._find_experiment(name)
        if found is None:
            raise MlflowUnavailable("the experiment was made and is not there")
        if found["lifecycle_stage"] != "active":
            raise JobFailure(
                f"the MLflow experiment {name!r} is deleted; restore it there, or name another one in the job",
                code="export_refused",
            )
        return str(found["experiment_id"])

    def find_run(self, experiment_id: str, tag: str, value: str) -> str | None:
        """Return the run of an experiment that has this tag."""
        body = {"experiment_ids": [experiment_id], "filter": f"tags.`{tag}` = '{value}'", "max_results": 1}
        runs = self._send("POST", "runs/search", json=body).get("runs") or [None]
        return str(runs[0]["info"]["run_id"]) if runs[0] else None

    def create_run(self, experiment_id: str, *, name: str, start_ms: int, tags: dict[str, str]) -> str:
        """Start a run and return its id."""
        body = {
            "experiment_id": experiment_id,
            "run_name": name,
            "start_time": start_ms,
            "tags": _pairs(tags),
        }
        return str(self._send("POST", "runs/create", json=body)["run"]["info"]["run_id"])

    def log_batch(
        self,
        run_id: str,
        *,
        metrics: list[dict[str, Any]] | None = None,
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Log what belongs together. What was logged before with the same values is not doubled."""
        body = {
            "run_id": run_id,
            "metrics": metrics or [],
            "params": _pairs(params or {}),
            "tags": _pairs(tags or {}),
        }
        self._send("POST", "runs/log-batch", json=body)

    def update_run(self, run_id: str, *, status: str, end_ms: int | None) -> None:
        """Say how the run is."""
        body: dict[str, Any] = {"run_id": run_id, "status": status}
        if end_ms is not None:
            body["end_time"] = end_ms
        self._send("POST", "runs/update", json=body)

    def _find_experiment(self, name: str) -> dict[str, Any] | None:
        reply = self._send(
            "GET",
            "experiments/get-by-name",
            params={"experiment_name": name},
            passed={"RESOURCE_DOES_NOT_EXIST"},
        )
        found: dict[str, Any] | None = reply.get("experiment")
        return found

    def _send(
        self, method: str, path: str, *, passed: set[str] | None = None, **request: Any
    ) -> dict[str, Any]:
        """Return the reply's object; an error whose code is in `passed` is an empty one."""
        try:
            reply = self._http.request(method, path, **request)
            body = reply.json()
        except httpx.HTTPError as error:
            raise MlflowUnavailable(f"the MLflow server cannot be used ({type(error).__name__})") from error
        except ValueError as error:
            raise MlflowUnavailable(f"the MLflow server answered {reply.status_code} and no JSON") from error
        if reply.status_code == 200 and isinstance(body, dict):
            return body
        code = str(body.get("error_code", "")) if isinstance(body, dict) else ""
        if passed and code in passed:
            return {}
        raise _refusal(reply.status_code, code, path)


def _refusal(status: int, code: str, path: str) -> Exception:
    # What the server says in words stays out: it may hold what is not this project's.
    what = f"the MLflow server answered {status} {code} to {path}".replace("  ", " ")
    if status in (400, 422):
        return JobFailure(f"{what}; it does not take what this job sends", code="export_refused")
    return MlflowUnavailable(what)


def _pairs(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]
