"""Limits of projects: what is refused, what waits, and that no race passes them."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import update

from app.database import Database, unit_of_work
from app.domain.job import State
from app.models.tenancy import Span
from app.models.work import Work
from app.quotas.service import month_of, to_ms
from app.work import repository
from app.work.fair_queue import claim_next, note_turns
from tests.integration.conftest import Server, Tenant, jsonl, refused, unlike_any_other
from tests.integration.test_work import at_once


@pytest.fixture
def limited(tenant: Tenant, operator: Tenant) -> Iterator[Any]:
    """A function that sets limits of the tenant's project."""

    def limit(**limits: int | None) -> None:
        reply = operator.http.patch(f"/v1/projects/{tenant.project_id}", json={"limits": limits})
        assert reply.status_code == 200, reply.text

    return limit


def add_span(database: Database, work_id: str, seconds: int, *, ended_ms: int | None = None) -> None:
    """Note that a worker spent some time on work."""
    until_ms = int(time.time() * 1000) if ended_ms is None else ended_ms
    with unit_of_work(database) as session:
        work = session.get_one(Work, work_id)
        session.add(
            Span(
                work_id=work_id,
                epoch=1000 + seconds,
                project_id=work.project_id,
                queue=work.queue,
                started_ms=until_ms - seconds * 1000,
                until_ms=until_ms,
            )
        )


class TestQueuedJobs:
    def test_fifty_at_once_take_one_place(self, tenant: Tenant, limited: Any) -> None:
        limited(queued_jobs=1)
        file_id = tenant.upload()
        replies = at_once(50, lambda _: tenant.post_job(training_file=file_id))
        assert sorted(reply.status_code for reply in replies) == [200] + [429] * 49
        assert len(tenant.get("/v1/fine_tuning/jobs")["data"]) == 1

    def test_refusal_says_what_is_used_and_who_can_help(self, tenant: Tenant, limited: Any) -> None:
        limited(queued_jobs=1)
        job = tenant.create_job()
        reply = tenant.post_job()
        message = refused(reply, 429, code="insufficient_quota")
        assert "1 jobs of the project wait, and its limit is 1" in message
        assert f"PATCH /v1/projects/{tenant.project_id}" in message
        assert reply.json()["error"]["type"] == "insufficient_quota"
        assert reply.headers["x-should-retry"] == "false"
        tenant.http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
        tenant.create_job()

    def test_client_does_not_ask_again(self, tenant: Tenant, limited: Any) -> None:
        limited(queued_jobs=1)
        file_id = tenant.upload()
        tenant.create_job(training_file=file_id)
        sent = []
        client = tenant.openai.with_options(max_retries=5)
        client._client.event_hooks["request"].append(sent.append)
        try:
            with pytest.raises(openai.RateLimitError, match="its limit is 1"):
                client.fine_tuning.jobs.create(model="org/base-model", training_file=file_id)
        finally:
            client._client.event_hooks["request"].clear()
        assert len(sent) == 1


class TestStorage:
    def test_files_and_uploads_have_the_room_together(self, tenant: Tenant, limited: Any) -> None:
        row = jsonl(unlike_any_other())
        limited(storage_bytes=3 * len(row))
        file_id = tenant.post_file(row).json()["id"]
        upload = {
            "bytes": len(row),
            "filename": "x",
            "mime_type": "text/jsonl",
            "purpose": "fine-tune",
        }
        upload_id = tenant.http.post("/v1/uploads", json=upload).json()["id"]
        assert tenant.get("/v1/usage")["storage_bytes"] == 2 * len(row)
        message = refused(tenant.post_file(row + row), 429, code="insufficient_quota")
        assert (
            f"keeps {2 * len(row)} of its {3 * len(row)} bytes, and {2 * len(row)} more do not fit" in message
        )
        refused(
            tenant.http.post("/v1/uploads", json={**upload, "bytes": 2 * len(row)}),
            429,
            code="insufficient_quota",
        )
        tenant.http.post(f"/v1/uploads/{upload_id}/cancel")
        tenant.http.delete(f"/v1/files/{file_id}")
        assert tenant.get("/v1/usage")["storage_bytes"] == 0
        assert tenant.post_file(row + row).status_code == 200

    def test_what_does_not_fit_is_not_stored(self, own_server: Any) -> None:
        tenant = own_server(project_storage_bytes=10)
        storage: Path = tenant.server.settings.storage
        refused(tenant.post_file(jsonl(unlike_any_other())), 429, code="insufficient_quota")
        assert [path for path in storage.rglob("*") if path.is_file()] == []

    def test_ten_at_once_take_the_room_of_one(self, tenant: Tenant, limited: Any) -> None:
        rows = [jsonl(unlike_any_other()) for _ in range(10)]
        limited(storage_bytes=len(rows[0]))
        replies = at_once(10, lambda index: tenant.post_file(rows[index]))
        assert sorted(reply.status_code for reply in replies) == [200] + [429] * 9


class TestGpuSeconds:
    def test_month_that_is_used_up(self, tenant: Tenant, limited: Any) -> None:
        limited(gpu_seconds=100)
        job = tenant.create_job()
        month_ms = to_ms(month_of(int(time.time() * 1000)))
        # What was used before this month does not count.
        add_span(tenant.server.database, job["id"], 500, ended_ms=month_ms + 99_000)
        tenant.create_job()
        add_span(tenant.server.database, job["id"], 2, ended_ms=month_ms + 200_000)
        message = refused(tenant.post_job(), 429, code="insufficient_quota")
        assert "has used 101 of the 100 GPU seconds" in message
        limited(gpu_seconds=None)
        tenant.create_job()

    def test_jobs_that_wait_already_go_on_waiting(self, tenant: Tenant, limited: Any) -> None:
        database, settings = tenant.server.database, tenant.server.settings
        job = tenant.create_job()
        limited(gpu_seconds=1)
        add_span(database, job["id"], 5)
        note_turns(database, settings, "gpu")
        queue = tenant.get(f"/v1/fine_tuning/jobs/{job['id']}")["queue"]
        assert "GPU seconds" in queue["waits_for"]
        assert queue["eta"] is None


class TestRunningJobs:
    def test_job_beyond_the_limit_waits_and_says_why(self, own_server: Any) -> None:
        tenant = own_server(project_running_jobs=1)
        database, settings = tenant.server.database, tenant.server.settings
        jobs = [tenant.create_job()["id"] for _ in range(2)]

        def claim() -> Work | None:
            return claim_next(database, settings, "gpu", owner="test", lease_ms=60_000)

        first = claim()
        assert first is not None
        assert first.id == jobs[0]
        assert claim() is None
        note_turns(database, settings, "gpu")
        queue = tenant.get(f"/v1/fine_tuning/jobs/{jobs[1]}")["queue"]
        assert queue["waits_for"] == "1 jobs of the project run, and its limit is 1"
        with unit_of_work(database) as session:
            repository.move(session, session.merge(first, load=False), State.FAILED)
        second = claim()
        assert second is not None
        assert second.id == jobs[1]
        assert tenant.get(f"/v1/fine_tuning/jobs/{jobs[1]}")["queue"] is None

    def test_workers_at_once_do_not_pass_it(self, server: Server, tenant: Tenant, limited: Any) -> None:
        limited(running_jobs=2)
        jobs = {tenant.create_job()["id"] for _ in range(6)}
        with unit_of_work(server.database) as session:
            # Nothing else on this server is claimed.
            session.execute(
                update(Work)
                .where(Work.state == State.QUEUED, Work.id.not_in(jobs))
                .values(state=State.FAILED)
            )
        claimed = at_once(
            6,
            lambda _: claim_next(server.database, server.settings, "gpu", owner="test", lease_ms=60_000),
        )
        assert len([work for work in claimed if work is not None]) == 2


class TestLimits:
    def test_own_limit_stands_before_the_installations(self, own_server: Any) -> None:
        from app.domain.scopes import Role

        operator = own_server(Role.OPERATOR, project_queued_jobs=7)
        path = f"/v1/projects/{operator.project_id}"
        everywhere = {"storage_bytes": 0, "running_jobs": 0, "queued_jobs": 7, "gpu_seconds": 0}
        assert operator.get(path)["limits"] == everywhere
        changed = operator.http.patch(path, json={"limits": {"queued_jobs": 2, "gpu_seconds": 9}}).json()
        assert changed["limits"] == {**everywhere, "queued_jobs": 2, "gpu_seconds": 9}
        assert changed["own_limits"] == {"queued_jobs": 2, "gpu_seconds": 9}
        changed = operator.http.patch(path, json={"limits": {"queued_jobs": None}, "name": "New"}).json()
        assert changed["limits"] == {**everywhere, "gpu_seconds": 9}
        assert changed["name"] == "New"
        assert operator.get("/v1/usage")["limits"] == changed["limits"]

    @pytest.mark.parametrize("limits", [{"queued_jobs": -1}, {"queued_jobs": "many"}, {"jobs": 1}])
    def test_what_is_no_limit_is_refused(self, operator: Tenant, limits: dict[str, Any]) -> None:
        reply = operator.http.patch(f"/v1/projects/{operator.project_id}", json={"limits": limits})
        refused(reply, 400, param=f"limits.{next(iter(limits))}")

    def test_projects(self, operator: Tenant) -> None:
        made = operator.http.post("/v1/projects", json={"name": "A", "limits": {"queued_jobs": 3}}).json()
        assert made["limits"]["queued_jobs"] == 3
        assert operator.get(f"/v1/projects/{made['id']}") == made
        assert operator.get("/v1/projects", limit=1)["data"] == [made]
        refused(operator.http.get("/v1/projects/proj_x"), 404, param="project_id")
        refused(operator.http.post("/v1/projects", json={"name": " "}), 400, param="name")


class TestUsage:
    def test_usage_of_a_project(self, tenant: Tenant) -> None:
        job = tenant.create_job()
        tenant.create_job()
        begin = to_ms(month_of(int(time.time() * 1000)))
        # Two seconds of the month before, one of this: the span crosses midnight of the first day.
        add_span(tenant.server.database, job["id"], 3, ended_ms=begin + 1000)
        add_span(tenant.server.database, job["id"], 4, ended_ms=begin + 9000)
        usage = tenant.get("/v1/usage")
        first_day = f"{usage['month']}-01"
        assert usage["jobs"] == {"queued": 2}
        assert usage["gpu_seconds"] == 5.0
        assert usage["gpu_seconds_by_day"] == [{"date": first_day, "gpu_seconds": 5.0}]
        assert usage["trained_tokens"] == 0
        assert usage["storage_bytes"] > 0
        before = month_of(begin - 1)
        last = tenant.get("/v1/usage", month=f"{before:%Y-%m}")
        assert last["gpu_seconds"] == 2.0

    def test_claimed_time_counts_to_its_end(self, own_server: Any) -> None:
        tenant = own_server()
        job_id = tenant.create_job()["id"]
        database = tenant.server.database
        with unit_of_work(database) as session:
            work = repository.claim(session, job_id, owner="test", lease_ms=60_000)
        assert work is not None
        time.sleep(0.05)
        with unit_of_work(database) as session:
            repository.renew(session, job_id, work.epoch, lease_ms=60_000)
        renewed = tenant.get("/v1/usage")["gpu_seconds"]
        assert renewed >= 0.05
        time.sleep(0.05)
        with unit_of_work(database) as session:
            repository.move(session, session.merge(work, load=False), State.FAILED)
        ended = tenant.get("/v1/usage")["gpu_seconds"]
        assert ended >= renewed + 0.05
        assert tenant.get("/v1/usage")["gpu_seconds"] == ended

    def test_others_usage_is_for_operators(self, tenant: Tenant, stranger: Tenant, operator: Tenant) -> None:
        for wanted in (stranger.project_id, "all"):
            reply = tenant.http.get("/v1/usage", params={"project_id": wanted})
            refused(reply, 403, param="project_id")
        assert operator.get("/v1/usage", project_id=tenant.project_id)["project_id"] == tenant.project_id
        found = {usage["project_id"] for usage in operator.get("/v1/usage", project_id="all")["data"]}
        assert {tenant.project_id, stranger.project_id, operator.project_id} <= found
        refused(tenant.http.get("/v1/usage", params={"month": "2026-13"}), 400, param="month")


class TestRateLimits:
    def test_headers_and_refusal(self, own_server: Any) -> None:
        tenant = own_server(requests_per_minute=3)
        replies = [tenant.http.get("/v1/files") for _ in range(4)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
        assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["2", "1", "0", "0"]
        for reply in replies:
            assert reply.headers["x-ratelimit-limit-requests"] == "3"
            assert re.fullmatch(r"1m0s|\d+s|\d+ms", reply.headers["x-ratelimit-reset-requests"])
        message = refused(replies[-1], 429, code="rate_limit_exceeded")
        assert "3 requests a minute" in message
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 60
        # The client may come again: it honours retry-after.
        assert "x-should-retry" not in replies[-1].headers

    def test_without_a_limit_there_are_no_headers(self, tenant: Tenant) -> None:
        assert not [name for name in tenant.http.get("/v1/files").headers if name.startswith("x-ratelimit")]

    def test_loss_of_redis_refuses_nobody(self, own_server: Any) -> None:
        tenant = own_server(requests_per_minute=1, broker_url="redis://127.0.0.1:1/0")
        assert [tenant.http.get("/v1/files").status_code for _ in range(3)] == [200] * 3
