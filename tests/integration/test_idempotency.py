"""Requests that are sent again: the same job, never a second one, on both databases."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from sqlalchemy import select

from app.database import read_only, unit_of_work
from app.idempotency import KEPT, RETRIED, forget_replies
from app.models.base import new_id
from app.models.reply import Reply
from tests.integration.conftest import MODEL, Tenant, api_process, refused

PATH = "/v1/fine_tuning/jobs"


def post(
    tenant: Tenant, file_id: str, *, key: str | None = None, retries: int = 0, **fields: Any
) -> httpx.Response:
    """Ask for a job as a client does, with or without a key."""
    headers = {"x-stainless-retry-count": str(retries)}
    if key is not None:
        headers["idempotency-key"] = key
    return tenant.http.post(PATH, json={"model": MODEL, "training_file": file_id, **fields}, headers=headers)


def count(tenant: Tenant) -> int:
    """Return how many jobs a tenant has."""
    return len(tenant.get(PATH, limit=100)["data"])


def age(tenant: Tenant, by: timedelta) -> None:
    """Make the kept replies of a tenant's key older than they are."""
    jobs = {job["id"] for job in tenant.get(PATH)["data"]}
    with unit_of_work(tenant.server.database) as session:
        for reply in session.scalars(select(Reply)):
            if reply.reply.get("id") in jobs:
                reply.created_at -= by


class TestKey:
    def test_same_request_gets_the_same_reply(self, tenant: Tenant) -> None:
        file_id, key = tenant.upload(), new_id("")
        first, second = post(tenant, file_id, key=key), post(tenant, file_id, key=key)
        assert first.status_code == 200
        assert second.json() == first.json()
        assert count(tenant) == 1

    def test_the_client_sends_it(self, tenant: Tenant) -> None:
        file_id, key = tenant.upload(), new_id("")
        jobs = {
            tenant.openai.fine_tuning.jobs.create(
                model=MODEL, training_file=file_id, extra_headers={"Idempotency-Key": key}
            ).id
            for _ in range(3)
        }
        assert len(jobs) == 1

    def test_another_body_is_refused_and_not_retried(self, tenant: Tenant) -> None:
        file_id, key = tenant.upload(), new_id("")
        post(tenant, file_id, key=key)
        reply = post(tenant, file_id, key=key, suffix="other")
        refused(reply, 409, code="idempotency_key_reused")
        assert reply.headers["x-should-retry"] == "false"
        assert count(tenant) == 1

    def test_another_key_is_another_job(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        ids = {post(tenant, file_id, key=new_id("")).json()["id"] for _ in range(2)}
        assert len(ids) == 2

    def test_key_of_another_tenant_is_another_key(self, tenant: Tenant, stranger: Tenant) -> None:
        key = new_id("")
        ours, theirs = (post(each, each.upload(), key=key).json() for each in (tenant, stranger))
        assert ours["id"] != theirs["id"]

    def test_refused_request_uses_up_no_key(self, tenant: Tenant) -> None:
        file_id, key = tenant.upload(), new_id("")
        refused(post(tenant, "file-nothing", key=key), 404, param="training_file")
        assert post(tenant, file_id, key=key).status_code == 200

    def test_key_may_be_used_again_after_a_day(self, tenant: Tenant) -> None:
        file_id, key = tenant.upload(), new_id("")
        first = post(tenant, file_id, key=key).json()
        age(tenant, KEPT)
        second = post(tenant, file_id, key=key, suffix="other")
        assert second.status_code == 200
        assert second.json()["id"] != first["id"]

    def test_one_job_of_many_requests_at_once(self, tenant: Tenant) -> None:
        file_id, key = tenant.upload(), new_id("")
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: post(tenant, file_id, key=key), range(16)))
        assert {reply.status_code for reply in replies} == {200}
        assert len({reply.json()["id"] for reply in replies}) == 1
        assert count(tenant) == 1

    def test_one_body_of_many_wins(self, tenant: Tenant) -> None:
        file_id, key = tenant.upload(), new_id("")
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda at: post(tenant, file_id, key=key, suffix=f"s{at}"), range(8)))
        assert sorted(reply.status_code for reply in replies) == [200] + [409] * 7
        assert count(tenant) == 1

    @pytest.mark.parametrize("key", ["", "x" * 256])
    def test_unusable_key_is_refused(self, tenant: Tenant, key: str) -> None:
        refused(post(tenant, tenant.upload(), key=key), 400, param="idempotency-key")

    def test_uploads_too(self, tenant: Tenant) -> None:
        body = {"bytes": 9, "filename": "x", "mime_type": "application/jsonl", "purpose": "fine-tune"}
        headers = {"idempotency-key": new_id("")}
        first, second = (tenant.http.post("/v1/uploads", json=body, headers=headers).json() for _ in range(2))
        assert first == second
        file_id = tenant.upload()
        assert post(tenant, file_id, key=headers["idempotency-key"]).status_code == 200, "another route"


class TestRetry:
    def test_retry_without_a_key_gives_the_job_from_before(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        first = post(tenant, file_id)
        for retries in (1, 2):
            assert post(tenant, file_id, retries=retries).json() == first.json()
        assert count(tenant) == 1

    def test_the_client_retries_a_reply_that_was_lost(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        lost: list[int] = []

        def lose_the_first(reply: httpx.Response) -> None:
            reply.read()
            if not lost:
                lost.append(reply.status_code)
                reply.status_code = 503

        with openai.OpenAI(api_key=tenant.key, base_url=f"{tenant.server.url}/v1", max_retries=2) as client:
            client._client.event_hooks = {"request": [], "response": [lose_the_first]}  # type: ignore[dict-item]
            job = client.fine_tuning.jobs.create(model=MODEL, training_file=file_id)
        assert lost == [200]
        assert [each["id"] for each in tenant.get(PATH)["data"]] == [job.id]

    def test_same_request_on_purpose_is_another_job(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        ids = {post(tenant, file_id).json()["id"] for _ in range(2)}
        assert len(ids) == 2
        newest = tenant.get(PATH)["data"][0]["id"]
        assert post(tenant, file_id, retries=1).json()["id"] == newest

    def test_another_body_is_another_job(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        first = post(tenant, file_id).json()
        assert post(tenant, file_id, retries=1, suffix="other").json()["id"] != first["id"]

    def test_retry_whose_first_sending_never_came(self, tenant: Tenant) -> None:
        assert post(tenant, tenant.upload(), retries=1).status_code == 200

    def test_retry_after_ten_minutes_is_another_job(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        first = post(tenant, file_id).json()
        age(tenant, RETRIED)
        assert post(tenant, file_id, retries=1).json()["id"] != first["id"]

    def test_one_job_of_retries_at_once(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: post(tenant, file_id, retries=1), range(8)))
        assert len({reply.json()["id"] for reply in replies}) == 1

    def test_junk_count_is_refused(self, tenant: Tenant) -> None:
        reply = tenant.http.post(PATH, json={}, headers={"x-stainless-retry-count": "many"})
        refused(reply, 400, param="x-stainless-retry-count")


class LateOriginal:
    """A request whose body has not quite arrived: the server has begun with it, and gets no further for now."""

    def __init__(self, tenant: Tenant, file_id: str, *, url: str | None = None, **headers: str) -> None:
        address = urlsplit(url or tenant.server.url)
        assert address.hostname is not None
        assert address.port is not None
        body = json.dumps({"model": MODEL, "training_file": file_id}).encode()
        lines = {
            "host": address.netloc,
            "authorization": f"Bearer {tenant.key}",
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "x-stainless-retry-count": "0",
            **headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.socket = socket.create_connection((address.hostname, address.port), timeout=60)
        self.socket.sendall(f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + body[:-1])
        self._last = body[-1:]

    def send_the_rest(self) -> None:
        """Let it go on."""
        self.socket.sendall(self._last)

    def finish(self) -> dict[str, Any]:
        """Let it go on and return its reply."""
        self.send_the_rest()
        with self.socket, self.socket.makefile("rb") as reply:
            head, _, body = reply.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        job: dict[str, Any] = json.loads(body)
        return job


@pytest.fixture
def late(tenant: Tenant) -> Iterator[Any]:
    """A function that begins an original and waits until the server has begun with it, too."""
    opened: list[socket.socket] = []

    def begin(file_id: str, **headers: str) -> LateOriginal:
        original = LateOriginal(tenant, file_id, **headers)
        opened.append(original.socket)
        # Its head is read before this request, which was sent later to the same loop, is answered.
        tenant.http.get("/healthz")
        return original

    yield begin
    for each in opened:
        each.close()


class TestLateOriginal:
    """The retry overtakes its original, on another connection. (A key changes nothing but where it is looked for.)"""

    @pytest.mark.parametrize("key", [None, "key"])
    def test_it_gets_the_job_of_its_retry(self, tenant: Tenant, late: Any, key: str | None) -> None:
        file_id = tenant.upload()
        original = late(file_id, **({"idempotency-key": key} if key else {}))
        retried = post(tenant, file_id, key=key, retries=1).json()
        assert original.finish() == retried
        assert post(tenant, file_id, key=key, retries=2).json() == retried
        assert count(tenant) == 1

    def test_a_new_request_is_another_job(self, tenant: Tenant, late: Any) -> None:
        file_id = tenant.upload()
        original = late(file_id)
        retried = post(tenant, file_id, retries=1).json()
        # Whoever has the reply to the retry and asks once more wants another job, before the original comes and after.
        more = [post(tenant, file_id).json()]
        assert original.finish() == retried
        more.append(post(tenant, file_id).json())
        assert len({retried["id"], *(job["id"] for job in more)}) == 3
        assert count(tenant) == 3

    def test_each_retry_has_one_original(self, tenant: Tenant, late: Any) -> None:
        file_id = tenant.upload()
        originals = [late(file_id) for _ in range(2)]
        retried = post(tenant, file_id, retries=1).json()
        ids = [original.finish()["id"] for original in originals]
        assert ids[0] == retried["id"]
        assert ids[1] != retried["id"]
        assert count(tenant) == 2

    def test_another_body_is_another_job(self, tenant: Tenant, late: Any) -> None:
        file_id = tenant.upload()
        original = late(file_id)
        retried = post(tenant, file_id, retries=1, suffix="other").json()
        assert original.finish()["id"] != retried["id"]

    def test_one_that_waited_unread_in_a_process_that_stood_still(self, tenant: Tenant) -> None:
        file_id = tenant.upload()
        with api_process(tenant.server.settings) as (url, process, log):
            process.send_signal(signal.SIGSTOP)
            original = LateOriginal(tenant, file_id, url=url)
            original.send_the_rest()
            original.socket.close()  # As a client does when its patience is over.
            retried = post(tenant, file_id, retries=1).json()
            process.send_signal(signal.SIGCONT)
            deadline = time.monotonic() + 60
            while '"method": "POST"' not in log.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert [job["id"] for job in tenant.get(PATH)["data"]] == [retried["id"]]


class TestForget:
    def test_old_replies_go(self, tenant: Tenant) -> None:
        file_id, key = tenant.upload(), new_id("")
        post(tenant, file_id, key=key)
        job_id = tenant.get(PATH)["data"][0]["id"]

        def kept() -> bool:
            with read_only(tenant.server.database) as session:
                return any(each.reply.get("id") == job_id for each in session.scalars(select(Reply)))

        forget_replies(tenant.server.database)
        assert kept()
        age(tenant, KEPT)
        forget_replies(tenant.server.database)
        assert not kept()
