"""/metrics, the log of requests, and that no secret and nothing that a user wrote is in either."""

import io
import json
import time
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app import metrics
from app.audit.repository import append_leaf
from app.database import unit_of_work
from app.domain.scopes import Role
from app.logs import configure_logs
from tests.integration.conftest import Tenant, jsonl, refused, unlike_any_other
from tests.integration.test_live import Run
from tests.unit.app.domain.leaf_examples import BODIES

Sample = tuple[str, tuple[tuple[str, str], ...]]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every scrape look at the database."""
    monkeypatch.setattr(metrics, "KEEP_S", -1.0)


def scrape(operator: Tenant) -> dict[Sample, float]:
    """Return every sample by name and labels."""
    reply = operator.http.get("/metrics")
    assert reply.status_code == 200, reply.text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


class TestMetrics:
    def test_only_operators_read_them(self, tenant: Tenant, operator: Tenant) -> None:
        refused(httpx.get(f"{tenant.server.url}/metrics"), 401)
        refused(tenant.http.get("/metrics"), 403)
        assert operator.http.get("/metrics").headers["content-type"].startswith("text/plain")

    def test_a_running_job_has_its_numbers(self, tenant: Tenant, operator: Tenant) -> None:
        before = scrape(operator)
        tenant.create_job()
        run = Run(tenant)
        counts = {"ok": 1, "failed": 0, "constant": 0, "unmeasured": 0, "judged": 0, "fallback": 3}
        with unit_of_work(run.database) as session:
            body = {**BODIES["risk.table/3"], "counts": counts}
            append_leaf(session, run.job_id, epoch=run.epoch, kind="risk.table", body=body)
        run.step(1)
        time.sleep(0.02)
        run.step(2, risk_mean=0.25, beta_mean=0.5)
        after = scrape(operator)
        job = (("job", run.job_id),)
        assert after["tether_job_step", job] == 2
        assert after["tether_disk_free_bytes", ()] > 0
        assert after["tether_job_risk", job] == 0.25
        assert after["tether_job_beta", job] == 0.5
        assert after["tether_job_fallback_share", job] == 0.75
        assert 0.01 <= after["tether_job_step_seconds", job] < 60
        for state in ("queued", "running"):
            name = ("tether_jobs", (("state", state),))
            assert after[name] == before[name] + 1
        assert after["tether_queue_length", (("queue", "gpu"),)] >= 1
        assert after["tether_queue_oldest_seconds", (("queue", "gpu"),)] >= 0
        assert after["tether_webhook_deliveries", (("state", "pending"),)] >= 0
        run.fail()
        assert not [name for name in scrape(operator) if ("job", run.job_id) in name[1]]

    def test_requests_are_counted_by_route_and_not_by_what_clients_invent(
        self, tenant: Tenant, operator: Tenant
    ) -> None:
        job = tenant.create_job()["id"]
        tenant.get(f"/v1/fine_tuning/jobs/{job}")
        tenant.http.request("PROPFIND", "/tea-for-two")
        labels = [
            dict(pairs) for name, pairs in scrape(operator) if name == "tether_http_request_seconds_count"
        ]
        assert {
            "method": "GET",
            "route": "/v1/fine_tuning/jobs/{job_id}",
            "status": "200",
        } in labels
        assert {"method": "other", "route": "unknown", "status": "404"} in labels
        assert "tea-for-two" not in operator.http.get("/metrics").text

    def test_the_database_is_not_asked_at_every_scrape(
        self, tenant: Tenant, operator: Tenant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = scrape(operator)
        monkeypatch.setattr(metrics, "KEEP_S", 60.0)
        tenant.create_job()
        name = ("tether_jobs", (("state", "queued"),))
        assert scrape(operator)[name] == first[name]


@pytest.fixture
def log() -> io.StringIO:
    """What the process writes, as JSON."""
    stream = io.StringIO()
    configure_logs("json", stream)
    return stream


def lines(log: io.StringIO, request_id: str) -> list[dict[str, Any]]:
    """Return the lines of a request; the last comes just after its reply."""
    deadline = time.monotonic() + 10
    while True:
        found = [
            line for line in map(json.loads, log.getvalue().splitlines()) if line.get("request") == request_id
        ]
        if any(line["logger"] == "app.requests" for line in found):
            return found
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestRequestLog:
    def test_a_request_is_a_line_that_names_project_job_and_route(
        self, tenant: Tenant, log: io.StringIO
    ) -> None:
        job = tenant.create_job()["id"]
        reply = tenant.http.get(f"/v1/fine_tuning/jobs/{job}")
        (line,) = lines(log, reply.headers["x-request-id"])
        assert line["duration_ms"] > 0
        wanted = {
            "message": "request",
            "project": tenant.project_id,
            "job": job,
            "method": "GET",
            "route": "/v1/fine_tuning/jobs/{job_id}",
            "status": 200,
        }
        assert wanted.items() <= line.items()


class TestCanaries:
    """A26: what must not be seen is planted wherever a client can put it, and looked for wherever it could come out."""

    def test_no_secret_comes_out(self, tenant: Tenant, server: Any, log: io.StringIO) -> None:
        operator = Tenant(server, Role.OPERATOR)
        canary = "ftk_live_canary_0123456789abcdefghij"
        seen: list[str] = []

        def ask(method: str, path: str, **options: Any) -> None:
            reply = tenant.http.request(method, path, **options)
            assert reply.status_code < 500, reply.text
            seen.append(reply.headers["x-request-id"])
            if "authorization" in options.get("headers", {}):
                assert canary not in reply.text

        ask("GET", "/v1/models", headers={"authorization": f"Bearer {canary}"})
        ask("GET", "/v1/models", headers={"authorization": f"Basic {canary}"})
        ask("GET", "/v1/nothing", headers={"authorization": f"Bearer {canary}"})
        ask("GET", f"/v1/fine_tuning/jobs/{canary}")
        ask("GET", "/v1/files", params={"after": f"https://u:{canary}@host/"})
        ask(
            "POST",
            "/v1/fine_tuning/jobs",
            json={"model": f"postgresql://u:{canary}@h/x", "training_file": canary},
        )
        job = tenant.create_job(metadata={"note": canary})["id"]
        row = unlike_any_other()
        row["messages"][0]["content"] += canary
        tenant.post_file(jsonl(row), filename=f"{canary}.jsonl")
        scraped = operator.http.get("/metrics").text
        described = operator.http.get("/openapi.json").text
        events = json.dumps(tenant.get(f"/v1/fine_tuning/jobs/{job}/events"))
        evidence = tenant.http.get(f"/v1/fine_tuning/jobs/{job}/evidence").content
        for request_id in seen:
            lines(log, request_id)
        operator.close()
        for text in (log.getvalue(), scraped, described, events, evidence.decode("latin-1")):
            for secret in (canary, tenant.key, operator.key):
                assert secret not in text
