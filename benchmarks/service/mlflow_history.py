"""Our risk curve beside MLflow's metric history: the same number of steps, on the same machine, asked by turns.

MLflow is no dependency of ours: it runs from a Python that has it.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from benchmarks.service.figures import JOBS, Plan
from benchmarks.service.installation import Installation, add_running_job, add_steps
from benchmarks.service.mlflow_server import tracking_server
from benchmarks.speed.results import Figure

POINTS = 1000
BATCH = 1000
"""The most metrics that MLflow takes at once."""
PAGE = 25_000
"""The most of a history that MLflow gives at once."""


def measure_mlflow(
    plan: Plan, server: Installation, python: str | None, say: Callable[[str], None]
) -> Iterator[Figure]:
    """Yield the times of both and their ratios; without an MLflow, a figure that says why there are none."""
    title = f"risk curve of {plan.steps:,} steps to {POINTS:,} points, cold"
    names = {
        "sampled": f"{title}, over MLflow's sampled history of one metric",
        "whole": f"{title}, over MLflow's whole history of one metric",
    }
    heading = "The risk curve beside MLflow"
    if python is None:
        note = "Not measured: no Python that has mlflow was named (--mlflow, or TETHER_TEST_MLOPS)."
        yield Figure("service_curve_over_mlflow_sampled", heading, names["sampled"], (), note=note)
        return
    say("MLflow: fill")
    job_id, _ = add_running_job(server.database, server.settings)
    add_steps(server.database, job_id, plan.steps)
    times: dict[str, list[float]] = {"ours": [], "sampled": [], "whole": []}
    with (
        TemporaryDirectory(prefix="tether-mlflow-") as folder,
        tracking_server(python, Path(folder)) as url,
        httpx.Client(timeout=120) as client,
    ):
        run_id = fill(client, url, plan.steps)
        version = client.get(f"{url}/version").text
        say("MLflow: ask")
        for round_ in range(plan.rounds):
            times["ours"].append(ask_us(client, server, job_id, POINTS - 2 * round_))
            times["sampled"].append(ask_sampled(client, url, run_id))
            times["whole"].append(ask_whole(client, url, run_id, plan.steps))
    note = (
        f"MLflow {version} serves from SQLite, too. Ours sends eleven columns and keeps their extremes; MLflow sends one"
        " metric, thinned by step, or all of it in pages."
    )
    for name, asked in names.items():
        ratios = tuple(ours / theirs for ours, theirs in zip(times["ours"], times[name], strict=True))
        yield Figure(f"service_curve_over_mlflow_{name}", heading, asked, ratios, 1.0, note=note)
        title = f"MLflow's {name} history of one metric, {plan.steps:,} steps"
        yield Figure(f"service_mlflow_{name}_ms", heading, title, tuple(times[name]), None, "ms", note)


def fill(client: httpx.Client, url: str, steps: int) -> str:
    """Log a metric of so many steps over the wire, and return the run."""
    api = f"{url}/api/2.0/mlflow"
    made = client.post(f"{api}/runs/create", json={"experiment_id": "0", "start_time": 0}).raise_for_status()
    run_id = str(made.json()["run"]["info"]["run_id"])
    for start in range(1, steps + 1, BATCH):
        batch = range(start, min(start + BATCH, steps + 1))
        metrics = [{"key": "loss", "value": 1 / step, "timestamp": step, "step": step} for step in batch]
        client.post(f"{api}/runs/log-batch", json={"run_id": run_id, "metrics": metrics}).raise_for_status()
    return run_id


def ask_us(client: httpx.Client, server: Installation, job_id: str, points: int) -> float:
    """Return the milliseconds of a curve that the server has not made yet: another number of points is another reply."""
    began = time.perf_counter()
    reply = client.get(
        f"{server.url}{JOBS}/{job_id}/risk",
        params={"max_points": points},
        headers={"authorization": f"Bearer {server.key}"},
    ).raise_for_status()
    found = len(reply.json()["rows"])
    took = (time.perf_counter() - began) * 1000
    _expect(found, points)
    return took


def ask_sampled(client: httpx.Client, url: str, run_id: str) -> float:
    """Return the milliseconds of a thinned history, which MLflow's own page asks for."""
    began = time.perf_counter()
    reply = client.get(
        f"{url}/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval",
        params={"run_ids": run_id, "metric_key": "loss", "max_results": POINTS},
    ).raise_for_status()
    found = len(reply.json()["metrics"])
    took = (time.perf_counter() - began) * 1000
    _expect(found, POINTS)
    return took


def ask_whole(client: httpx.Client, url: str, run_id: str, steps: int) -> float:
    """Return the milliseconds of a whole history, page after page."""
    began = time.perf_counter()
    found, token = 0, ""
    while token or not found:
        asked = {"run_id": run_id, "metric_key": "loss", "max_results": str(PAGE)}
        reply = client.get(
            f"{url}/api/2.0/mlflow/metrics/get-history",
            params={**asked, **({"page_token": token} if token else {})},
        ).raise_for_status()
        page = reply.json()
        found, token = found + len(page["metrics"]), page.get("next_page_token", "")
    took = (time.perf_counter() - began) * 1000
    if found != steps:
        raise RuntimeError(f"MLflow has {found} of {steps} steps")
    return took


def _expect(found: int, points: int) -> None:
    # A reply with far fewer points than were asked for would be no comparison.
    if not points / 2 <= found <= points * 1.2:
        raise RuntimeError(f"{found} points came instead of about {points}")
