"""Jobs that are shown in MLflow: what arrives there, what happens while it is away, and that the job never notices."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from app.database import read_only, unit_of_work
from app.jobs import repository as jobs
from app.models.base import now_ms, utc_now
from app.models.job import Job
from app.models.work import Work
from app.work.repository import get_work
from benchmarks.service.mlflow_server import tracking_server
from tests.integration.conftest import Tenant, jsonl, refused, unlike_any_other
from tests.mlflow_server import Tracking, mlflow_server
from tests.support import settings_in, tampering
from worker.exporter import LONGEST_PAUSE_S, pause_after
from worker.process import run, run_next

REAL = os.environ.get("TETHER_TEST_MLOPS")
WANTED = {"type": "mlflow", "mlflow": {"experiment": "tuning", "run_name": "first", "tags": {"team": "x"}}}


@pytest.fixture
def tracking() -> Iterator[Tracking]:
    """A tracking server."""
    with mlflow_server() as running:
        yield running


@contextmanager
def same_signals() -> Iterator[None]:
    """Keep the answer to a signal that a worker's process sets for itself."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def work_next(tenant: Tenant) -> None:
    """Do the work of the queue `cpu` whose turn it is, if there is any, in this process."""
    with same_signals():
        run_next(tenant.server.database, tenant.server.settings, "cpu", "test")


def end_pause(tenant: Tenant, work: Work) -> None:
    """Let the time before the next round be over."""
    with unit_of_work(tenant.server.database) as session:
        session.execute(update(Work).where(Work.id == work.id).values(not_before_ms=now_ms()))


def run_worker(tenant: Tenant, work: Work) -> Work:
    """Do a round now, in this process: what it loads is small, and starting a process takes longer than the round."""
    with same_signals():
        run(tenant.server.database, tenant.server.settings, work.id)
    with read_only(tenant.server.database) as session:
        done = get_work(session, work.id)
    assert done is not None
    return done


def export_of(tenant: Tenant) -> Work:
    """Return the only export of the tenant's project."""
    with read_only(tenant.server.database) as session:
        return session.scalars(
            select(Work).where(Work.project_id == tenant.project_id, Work.kind == "export")
        ).one()


def add_steps(tenant: Tenant, job_id: str, *steps: int) -> None:
    """Give a job these steps, as its trainer would."""
    with unit_of_work(tenant.server.database) as session:
        job = session.get_one(Job, job_id)
        for step in steps:
            record = {"step": step, "loss": 1 / step, "kl": None, "risk_mean": 0.25, "rows": [1, 2]}
            jobs.save_step(session, job, step, record)
        job.step = max(steps)


def end_job(tenant: Tenant, job_id: str, state: str = "succeeded") -> None:
    """End a job, as its trainer would."""
    with unit_of_work(tenant.server.database) as session:
        session.execute(update(Work).where(Work.id == job_id).values(state=state, finished_at=utc_now()))
        session.execute(update(Job).where(Job.id == job_id).values(adapter_sha256="a" * 64))


def warnings_of(tenant: Tenant, job_id: str) -> list[str]:
    """Return the warnings in a job's log."""
    events = tenant.get(f"/v1/fine_tuning/jobs/{job_id}/events", limit=100)["data"]
    return [event["message"] for event in events if event["level"] == "warn"]


class TestExport:
    def test_round_by_round_to_the_end(self, own_server: Any, tracking: Tracking) -> None:
        tenant = own_server(mlflow_tracking_uri=tracking.url, mlflow_token="token-1")
        job = tenant.create_job(integrations=[WANTED])
        assert job["integrations"] == [WANTED]
        add_steps(tenant, job["id"], 1, 2, 3)
        work = run_worker(tenant, export_of(tenant))
        assert (work.state, work.args["after"]) == ("queued", 2), "the newest step is not whole yet"
        (run,) = tracking.runs.values()
        assert tracking.experiments == ["tuning"]
        assert (run["run_name"], run["tags"]["team"]) == ("first", "x")
        assert run["tags"]["tether.job"] == job["id"]
        assert {metric[:3] for metric in run["metrics"]} == {
            ("loss", 1, 1.0),
            ("loss", 2, 0.5),
            ("risk_mean", 1, 0.25),
            ("risk_mean", 2, 0.25),
        }
        assert run["params"]["model"] == job["model"]
        assert run["params"]["lora_r"] == "16"
        assert "status" not in run

        add_steps(tenant, job["id"], 4)
        end_job(tenant, job["id"])
        assert run_worker(tenant, work).state == "succeeded"
        assert sorted(metric[1] for metric in run["metrics"] if metric[0] == "loss") == [1, 2, 3, 4]
        assert (run["status"], run["tags"]["tether.status"]) == ("FINISHED", "succeeded")
        assert run["tags"]["tether.adapter_sha256"] == "a" * 64
        assert run["tags"]["tether.evidence"] == f"/v1/fine_tuning/jobs/{job['id']}/evidence"
        assert run["end_time"] >= run["start_time"]
        assert tracking.tokens == {"Bearer token-1"}
        assert warnings_of(tenant, job["id"]) == []
        assert run_worker(tenant, work).state == "succeeded", "a second knock changes nothing"
        assert len(tracking.runs) == 1

    def test_batch_that_was_cut_off_arrives_once(self, own_server: Any, tracking: Tracking) -> None:
        tenant = own_server(mlflow_tracking_uri=tracking.url)
        job = tenant.create_job(integrations=[WANTED])
        add_steps(tenant, job["id"], *range(1, 200))
        end_job(tenant, job["id"], "cancelled")
        tracking.broken["runs/update"] = (500, "INTERNAL_ERROR")
        work = run_worker(tenant, export_of(tenant))
        assert (work.state, work.args["after"]) == ("queued", 199)
        (run,) = tracking.runs.values()
        sent = set(run["metrics"])
        # As if the process had been killed before it noted that the last batch was sent.
        at_ms = max(metric[3] for metric in sent)
        tracking.broken.clear()
        with unit_of_work(tenant.server.database) as session:
            row = session.get_one(Work, work.id)
            batch = {metric[1] for metric in sent if metric[3] == at_ms}
            row.args = {**row.args, "after": min(batch) - 1, "at_ms": at_ms}
        assert run_worker(tenant, work).state == "succeeded"
        assert run["metrics"] == sent
        assert run["status"] == "KILLED"
        assert len(tracking.runs) == 1

    def test_server_that_is_away_is_waited_for_ever_longer(self, own_server: Any, tracking: Tracking) -> None:
        tenant = own_server(mlflow_tracking_uri=tracking.url, max_infrastructure_failures=2)
        job = tenant.create_job(integrations=[WANTED])
        tracking.broken["experiments/get-by-name"] = (503, "TEMPORARILY_UNAVAILABLE")
        for rounds in (1, 2):
            work_next(tenant)
            calls = list(tracking.calls)
            work_next(tenant)
            assert tracking.calls == calls, "nobody claims it before its time"
            work = export_of(tenant)
            assert (work.state, work.infrastructure_failures) == ("queued", rounds)
            assert work.not_before_ms is not None
            assert work.knocked_at_ms is not None
            half_minutes = (work.not_before_ms - work.knocked_at_ms) / 30_000
            assert round(half_minutes) == rounds
            end_pause(tenant, work)
        (warning,) = warnings_of(tenant, job["id"])
        assert "experiments/get-by-name" in warning
        assert "secret" not in warning
        assert run_worker(tenant, work).state == "failed"
        assert "The export failed" in warnings_of(tenant, job["id"])[0]
        assert tenant.get(f"/v1/fine_tuning/jobs/{job['id']}")["status"] == "queued", "the job goes on"

    def test_newer_work_comes_between_two_rounds(self, own_server: Any, tracking: Tracking) -> None:
        tenant = own_server(mlflow_tracking_uri=tracking.url, sync_check_bytes=200)
        tenant.create_job(integrations=[WANTED])
        big = tenant.post_file(jsonl(*(unlike_any_other() for _ in range(9)))).json()["id"]
        for _ in range(2):
            work_next(tenant)
        assert tenant.get(f"/v1/files/{big}")["status"] == "processed"
        calls = list(tracking.calls)
        work_next(tenant)
        assert tracking.calls == calls, "the next round is half a minute away"
        end_pause(tenant, export_of(tenant))
        work_next(tenant)
        assert len(tracking.calls) > len(calls)

    def test_refusal_is_final_and_the_job_goes_on(self, own_server: Any, tracking: Tracking) -> None:
        tenant = own_server(mlflow_tracking_uri=tracking.url)
        job = tenant.create_job(integrations=[WANTED])
        tracking.broken["runs/create"] = (400, "INVALID_PARAMETER_VALUE")
        assert run_worker(tenant, export_of(tenant)).state == "failed"
        (warning,) = warnings_of(tenant, job["id"])
        assert "400 INVALID_PARAMETER_VALUE to runs/create" in warning
        found = tenant.get(f"/v1/fine_tuning/jobs/{job['id']}")
        assert (found["status"], found["error"]) == ("queued", None)


class TestPauseAfter:
    def test_doubles_up_to_an_hour(self) -> None:
        assert [pause_after(failures, 30.0) for failures in range(9)] == [
            *(30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0),
            *(LONGEST_PAUSE_S, LONGEST_PAUSE_S),
        ]

    def test_all_of_them_are_as_long_as_the_docs_say(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path)
        pauses = (
            pause_after(each, settings.requeue_after_s)
            for each in range(settings.max_infrastructure_failures)
        )
        assert 2.2 < sum(pauses) / 86_400 < 2.3


class TestRefusals:
    @pytest.mark.parametrize(
        ("integration", "param", "message"),
        [
            ({"type": "wandb", "wandb": {"project": "p"}}, "integrations[0].type", "wandb_offline.py"),
            ({"type": "comet"}, "integrations[0].type", "'mlflow'"),
            ({"type": "mlflow", "mlflow": {}}, "integrations[0].mlflow.experiment", "required"),
            (
                {"type": "mlflow", "mlflow": {"experiment": "x", "tags": {"tether.job": "mine"}}},
                "integrations[0].mlflow",
                "prefix",
            ),
            (WANTED, "integrations[0].type", "TETHER_MLFLOW_TRACKING_URI"),
        ],
    )
    def test_what_cannot_be_exported_is_refused(
        self, tenant: Tenant, integration: dict[str, Any], param: str, message: str
    ) -> None:
        reply = tenant.post_job(integrations=[integration])
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert message in error["message"]
        assert error["param"] == param

    def test_too_many(self, own_server: Any) -> None:
        tenant = own_server(mlflow_tracking_uri="http://127.0.0.1:9")
        refused(tenant.post_job(integrations=[WANTED] * 6), 400, param="integrations")


@pytest.mark.skipif(REAL is None, reason="TETHER_TEST_MLOPS names no Python that has mlflow")
def test_real_server_takes_it(own_server: Any, tmp_path: Path) -> None:
    assert REAL is not None
    with tracking_server(REAL, tmp_path) as url:
        tenant = own_server(mlflow_tracking_uri=url)
        job = tenant.create_job(integrations=[WANTED])
        add_steps(tenant, job["id"], *range(1, 150))
        work = run_worker(tenant, export_of(tenant))
        assert work.state == "queued", warnings_of(tenant, job["id"])
        end_job(tenant, job["id"])
        assert run_worker(tenant, work).state == "succeeded"
        # Once more from the start, as after a crash: MLflow must not hold anything twice.
        with tampering(tenant.server.database) as session:
            session.execute(update(Work).where(Work.id == work.id).values(state="queued"))
        assert run_worker(tenant, work).state == "succeeded"
        api = f"{url}/api/2.0/mlflow"
        body = {"experiment_ids": ["1"], "max_results": 10}
        (run,) = httpx.post(f"{api}/runs/search", json=body).json()["runs"]
        assert run["info"]["status"] == "FINISHED"
        assert run["info"]["run_name"] == "first"
        tags = {each["key"]: each["value"] for each in run["data"]["tags"]}
        assert tags["tether.adapter_sha256"] == "a" * 64
        asked = {"run_id": run["info"]["run_id"], "metric_key": "loss"}
        history = httpx.get(f"{api}/metrics/get-history", params=asked).json()["metrics"]
        assert [each["step"] for each in history] == list(range(1, 150))
        assert history[3]["value"] == 0.25
