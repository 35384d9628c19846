"""Webhooks from the change that they tell of to a receiver that takes them, or does not."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from standardwebhooks import Webhook, WebhookVerificationError

from app.database import Database, read_only, unit_of_work
from app.domain.job import State
from app.models.base import now_ms, utc_now
from app.models.webhook import EventType, WebhookDelivery, WebhookEndpoint
from app.settings import Settings
from app.webhooks import delivery, repository
from app.webhooks.delivery import (
    DISABLED,
    GIVE_UP_AFTER_MS,
    Outcome,
    deliver_next,
    prune,
    record,
    run_deliveries,
)
from app.webhooks.events import announce
from app.webhooks.service import MAX_ENDPOINTS
from app.work import repository as work_repository
from app.work.service import end, succeed
from tests.integration.conftest import Tenant, refused
from tests.integration.test_work import at_once
from tests.webhook_receiver import CANARY, Receiver, Request, receiving

PATH = "/v1/webhook_endpoints"
ENDS = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
EVERY = [each.value for each in EventType]
GOOD: dict[str, Any] = {"name": "CI", "url": "https://hooks.example/x", "event_types": ENDS}
ERROR = {"code": "broken", "message": "it broke", "param": None}


def add(tenant: Tenant, url: str, *types: str) -> dict[str, Any]:
    """Add an endpoint and return its object, which has its secret."""
    reply = tenant.http.post(PATH, json={"name": "CI", "url": url, "event_types": types or EVERY})
    assert reply.status_code == 200, reply.text
    made: dict[str, Any] = reply.json()
    return made


def log_of(tenant: Tenant, endpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the log of an endpoint, newest first."""
    return cast("list[dict[str, Any]]", tenant.get(f"{PATH}/{endpoint['id']}/deliveries")["data"])


def end_job(database: Database, job_id: str, state: State) -> None:
    """Take a queued job to its end as its owner and whoever releases it would; nothing is signed in between."""
    with unit_of_work(database) as session:
        work = work_repository.claim(session, job_id, owner="test", lease_ms=60_000)
        assert work is not None
        for each in (State.RUNNING, State.FINALISING):
            work_repository.move(session, work, each)
        work.args = {**work.args, "cancelled_by": "key_1"}
        end(session, work, state, ERROR if state is State.FAILED else None)
        if state is State.SUCCEEDED:
            succeed(session, work)


def tell(tenant: Tenant, event_type: EventType = EventType.SUCCEEDED) -> None:
    """Have something happen in the project."""
    with unit_of_work(tenant.server.database) as session:
        announce(session, tenant.project_id, event_type, "ftjob-1")


def deliver(tenant: Tenant, endpoint: dict[str, Any]) -> bool:
    """Attempt what is due for an endpoint, once."""
    return deliver_next(tenant.server.database, tenant.server.settings, endpoint["id"])


def set_deliveries(tenant: Tenant, endpoint: dict[str, Any], **values: Any) -> None:
    """Change the deliveries to an endpoint, as time would."""
    with unit_of_work(tenant.server.database) as session:
        changed = update(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint["id"])
        session.execute(changed.values(**values))


def set_endpoint(tenant: Tenant, endpoint: dict[str, Any], **values: Any) -> None:
    """Change an endpoint, as time would."""
    with unit_of_work(tenant.server.database) as session:
        session.execute(update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint["id"]).values(**values))


def try_for_72_hours(tenant: Tenant, endpoint: dict[str, Any]) -> None:
    """Attempt the deliveries of an endpoint for the last time."""
    set_endpoint(tenant, endpoint, good_at_ms=WebhookEndpoint.good_at_ms - 2 * GIVE_UP_AFTER_MS)
    set_deliveries(
        tenant, endpoint, tried_since_ms=now_ms() - GIVE_UP_AFTER_MS - 1000, next_attempt_at_ms=now_ms()
    )
    while any(each["status"] == "pending" for each in log_of(tenant, endpoint)):
        deliver(tenant, endpoint)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that answers 200."""
    with receiving() as receiver:
        yield receiver


class TestEndpoints:
    def test_openai_client_manages_them(self, tenant: Tenant) -> None:
        webhooks = tenant.openai.webhooks
        made = webhooks.create(name="CI", url="https://hooks.example/x", event_types=cast("Any", ENDS))
        assert (made.name, made.url, made.event_types) == ("CI", "https://hooks.example/x", ENDS)
        assert made.signing_secret.startswith("whsec_")
        assert made.signing_secret_hint is not None
        found = webhooks.retrieve(made.id)
        assert found.object == "webhook_endpoint"
        assert found.updated_at == found.created_at == made.created_at
        changed = webhooks.update(made.id, name="other", event_types=["fine_tuning.job.failed"])
        assert (changed.name, changed.event_types, changed.url) == ("other", [ENDS[1]], made.url)
        other = webhooks.create(name="second", url="https://hooks.example/y", event_types=cast("Any", EVERY))
        assert [each.id for each in webhooks.list(limit=1)] == [other.id, made.id]
        rotated = webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
        assert rotated.signing_secret not in (made.signing_secret, other.signing_secret)
        assert webhooks.delete(other.id).deleted
        with pytest.raises(openai.NotFoundError):
            webhooks.retrieve(other.id)
        assert webhooks.event_types.list().data == EVERY

    def test_time_of_the_last_change_is_that_of_a_change(self, tenant: Tenant) -> None:
        made = add(tenant, "https://hooks.example/x")
        long_ago = utc_now() - timedelta(days=1)
        set_endpoint(tenant, made, updated_at=long_ago)
        path = f"{PATH}/{made['id']}"
        same = {name: made[name] for name in ("name", "url", "event_types", "enabled")}
        for body in ({}, same):
            found = tenant.http.post(path, json=body).json()
            assert found["updated_at"] == int(long_ago.timestamp())
        for body in (
            {"name": "x"},
            {"enabled": False},
            {"event_types": [ENDS[0]]},
            {"url": GOOD["url"] + "/"},
        ):
            set_endpoint(tenant, made, updated_at=long_ago)
            assert tenant.http.post(path, json=body).json()["updated_at"] >= made["updated_at"]

    def test_secret_is_shown_once(self, tenant: Tenant) -> None:
        made = add(tenant, GOOD["url"])
        for path in (PATH, f"{PATH}/{made['id']}"):
            text = tenant.http.get(path).text
            assert made["id"] in text
            assert made["signing_secret"] not in text
            assert '"signing_secret"' not in text
        assert tenant.http.post(f"{PATH}/{made['id']}", json={"name": "x"}).json().keys() == (
            made.keys() - {"signing_secret"}
        )

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"url": "http://hooks.example/x"}, "url"),
            ({"url": "https://169.254.169.254/latest"}, "url"),
            ({"url": "https://[::ffff:127.0.0.1]/"}, "url"),
            ({"url": "https://0x7f.1/"}, "url"),
            ({"url": "file:///etc/passwd"}, "url"),
            ({"url": "gopher://127.0.0.1:70/"}, "url"),
            ({"url": "https://user:pa55@hooks.example/"}, "url"),
            ({"url": ""}, "url"),
            ({"url": "https://hooks.example/" + "x" * 2048}, "url"),
            ({"event_types": []}, "event_types"),
            ({"event_types": ["batch.completed"]}, "event_types[0]"),
            ({"name": ""}, "name"),
            ({"secret": "whsec_mine"}, "secret"),
            ({"project_id": "proj_default"}, "project_id"),
        ],
    )
    def test_bad_field_is_named(self, tenant: Tenant, change: dict[str, Any], param: str) -> None:
        message = refused(tenant.http.post(PATH, json={**GOOD, **change}), 400, param=param)
        assert "pa55" not in message
        made = add(tenant, "https://hooks.example/x")
        refused(tenant.http.post(f"{PATH}/{made['id']}", json=change), 400, param=param)
        assert tenant.get(f"{PATH}/{made['id']}")["url"] == "https://hooks.example/x"

    def test_number_is_limited_however_many_ask_at_once(self, tenant: Tenant) -> None:
        replies = at_once(MAX_ENDPOINTS + 4, lambda _: tenant.http.post(PATH, json=GOOD).status_code)
        assert sorted(replies) == [200] * MAX_ENDPOINTS + [409] * 4
        refused(tenant.http.post(PATH, json=GOOD), 409, code="too_many_webhook_endpoints")

    def test_another_project_finds_nothing(self, tenant: Tenant, stranger: Tenant) -> None:
        made, theirs = add(tenant, "https://hooks.example/x"), add(stranger, "https://hooks.example/x")
        tell(tenant)
        (line,) = log_of(tenant, made)
        path = f"{PATH}/{made['id']}"
        redeliver = f"deliveries/{line['id']}/redeliver"
        for method, url, body in (
            ("GET", path, None),
            ("POST", path, {"enabled": False}),
            ("DELETE", path, None),
            ("POST", f"{path}/rotate_secret", {}),
            ("POST", f"{path}/test", {"event_type": ENDS[0]}),
            ("GET", f"{path}/deliveries", None),
            ("POST", f"{path}/{redeliver}", None),
        ):
            reply = stranger.http.request(method, url, json=body)
            refused(reply, 404, param="webhook_endpoint_id")
        refused(stranger.http.post(f"{PATH}/{theirs['id']}/{redeliver}"), 404, param="delivery_id")
        for url in (PATH, f"{PATH}/{theirs['id']}/deliveries"):
            after = made["id"] if url == PATH else line["id"]
            refused(stranger.http.get(url, params={"after": after}), 400, param="after")
        assert [each["id"] for each in stranger.get(PATH)["data"]] == [theirs["id"]]
        assert log_of(stranger, theirs) == []
        assert tenant.get(path)["enabled"]


class TestEvents:
    @pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
    def test_end_of_a_job_is_told_to_who_wants_it(
        self, tenant: Tenant, stranger: Tenant, state: State
    ) -> None:
        wanted = f"fine_tuning.job.{state}"
        listening = add(tenant, "https://hooks.example/1", wanted)
        others = [
            add(tenant, "https://hooks.example/2", *(each for each in EVERY if each != wanted)),
            add(tenant, "https://hooks.example/3"),
        ]
        tenant.http.post(f"{PATH}/{others[1]['id']}", json={"enabled": False})
        foreign = add(stranger, "https://hooks.example/4")
        job = tenant.create_job()
        end_job(tenant.server.database, job["id"], state)
        with read_only(tenant.server.database) as session:
            (row,) = session.scalars(
                select(WebhookDelivery).where(WebhookDelivery.project_id == tenant.project_id)
            )
        assert row.endpoint_id == listening["id"]
        body = json.loads(row.body)
        assert body == {
            "id": row.event_id,
            "object": "event",
            "type": wanted,
            "created_at": body["created_at"],
            "data": {"id": job["id"]},
        }
        assert row.event_id.startswith("evt_")
        assert isinstance(body["created_at"], int)
        assert abs(body["created_at"] - time.time()) < 60
        assert log_of(stranger, foreign) == []

    def test_cancel_and_pause_over_the_api_are_told(self, tenant: Tenant) -> None:
        endpoint = add(tenant, "https://hooks.example/x")
        job = tenant.create_job()
        for command in ("pause", "cancel"):
            assert tenant.http.post(f"/v1/fine_tuning/jobs/{job['id']}/{command}").status_code == 200
        told = [each["event_type"] for each in log_of(tenant, endpoint)]
        assert told == ["fine_tuning.job.cancelled", "fine_tuning.job.paused"]

    def test_same_event_has_one_id_for_all(self, tenant: Tenant) -> None:
        endpoints = [add(tenant, "https://hooks.example/x") for _ in range(2)]
        tell(tenant)
        ids = [log_of(tenant, each)[0]["event_id"] for each in endpoints]
        assert ids[0] == ids[1]

    def test_change_that_is_rolled_back_is_not_told(self, tenant: Tenant) -> None:
        endpoint = add(tenant, "https://hooks.example/x")
        job = tenant.create_job()
        with pytest.raises(RuntimeError), unit_of_work(tenant.server.database) as session:
            work = work_repository.claim(session, job["id"], owner="a worker", lease_ms=1)
            assert work is not None
            end(session, work, State.FAILED, ERROR)
            raise RuntimeError
        assert log_of(tenant, endpoint) == []
        assert tenant.get(f"/v1/fine_tuning/jobs/{job['id']}")["status"] == "queued"

    def test_endpoint_that_is_just_being_deleted_keeps_no_job_from_ending(self, tenant: Tenant) -> None:
        for _ in range(5):
            endpoint = add(tenant, "https://hooks.example/x")
            job = tenant.create_job()

            def act(index: int, endpoint: dict[str, Any] = endpoint, job: dict[str, Any] = job) -> Any:
                if index:
                    return tenant.http.delete(f"{PATH}/{endpoint['id']}").status_code
                return end_job(tenant.server.database, job["id"], State.SUCCEEDED)

            assert at_once(2, act) == [None, 200]
            assert tenant.get(f"/v1/fine_tuning/jobs/{job['id']}")["status"] == "succeeded"


class TestSignature:
    """A20, with the bytes that were really delivered."""

    def test_openai_client_unwraps_what_arrives(self, tenant: Tenant, receiver: Receiver) -> None:
        endpoint = add(tenant, receiver.url)
        job = tenant.create_job()
        end_job(tenant.server.database, job["id"], State.SUCCEEDED)
        assert deliver(tenant, endpoint)
        (got,) = receiver.received
        event = tenant.openai.webhooks.unwrap(got.body, got.headers, secret=endpoint["signing_secret"])
        assert isinstance(event, openai.types.webhooks.FineTuningJobSucceededWebhookEvent)
        assert (event.data.id, event.id) == (job["id"], got.headers["webhook-id"])
        assert got.headers["content-type"] == "application/json"
        assert Webhook(endpoint["signing_secret"]).verify(got.body, got.headers)["id"] == event.id

    def test_our_own_events_verify(self, tenant: Tenant, receiver: Receiver) -> None:
        endpoint = add(tenant, receiver.url)
        tell(tenant, EventType.SAFETY_ALERT)
        assert deliver(tenant, endpoint)
        (got,) = receiver.received
        tenant.openai.webhooks.verify_signature(got.body, got.headers, secret=endpoint["signing_secret"])
        assert json.loads(got.body)["type"] == "fine_tuning.job.safety_alert"

    def test_forged_and_replayed_are_refused(
        self, tenant: Tenant, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        endpoint, other = add(tenant, receiver.url), add(tenant, receiver.url)
        tell(tenant)
        assert deliver(tenant, endpoint)
        (got,) = receiver.received
        secret = endpoint["signing_secret"]
        stamp = int(got.headers["webhook-timestamp"])
        forged = [
            (got.body.replace(b"ftjob-1", b"ftjob-2"), got.headers, secret),
            (got.body, {**got.headers, "webhook-id": "evt_other"}, secret),
            (got.body, {**got.headers, "webhook-timestamp": str(stamp + 1)}, secret),
            (got.body, {**got.headers, "webhook-signature": "v1,AAAA"}, secret),
            (got.body, got.headers, other["signing_secret"]),
        ]
        for body, headers, key in forged:
            with pytest.raises(openai.InvalidWebhookSignatureError):
                tenant.openai.webhooks.unwrap(body, headers, secret=key)
            with pytest.raises(WebhookVerificationError):
                Webhook(key).verify(body, headers)
        monkeypatch.setattr(time, "time", lambda: stamp + 301.0)
        with pytest.raises(openai.InvalidWebhookSignatureError, match="too old"):
            tenant.openai.webhooks.unwrap(got.body, got.headers, secret=secret)

    def test_former_secret_signs_too_for_a_day(self, tenant: Tenant, receiver: Receiver) -> None:
        endpoint = add(tenant, receiver.url)
        path = f"{PATH}/{endpoint['id']}/rotate_secret"
        rotated = tenant.http.post(path, json={"keep_old_secret_active_for_24_hours": True}).json()
        assert abs(rotated["old_secret_expires_at"] - time.time() - 86_400) < 60
        keys = [each["signing_secret"] for each in (rotated, endpoint)]

        def verified() -> list[bool]:
            tell(tenant)
            assert deliver(tenant, endpoint)
            got = receiver.received[-1]
            found = [takes(key, got) for key in keys]
            assert len(got.headers["webhook-signature"].split(" ")) == sum(found)
            return found

        assert verified() == [True, True]
        set_endpoint(tenant, endpoint, former_secret_until_ms=now_ms() - 1)
        assert verified() == [True, False]

    def test_leaked_secret_stops_at_once(self, tenant: Tenant, receiver: Receiver) -> None:
        endpoint = add(tenant, receiver.url)
        rotated = tenant.http.post(f"{PATH}/{endpoint['id']}/rotate_secret").json()
        assert rotated["old_secret_expires_at"] is None
        tell(tenant)
        assert deliver(tenant, endpoint)
        got = receiver.received[-1]
        assert [takes(each["signing_secret"], got) for each in (rotated, endpoint)] == [True, False]


def takes(secret: str, got: Any) -> bool:
    """Say whether a receiver with this secret believes a request."""
    try:
        Webhook(secret).verify(got.body, got.headers)
    except WebhookVerificationError:
        return False
    return True


class TestAttempts:
    def test_delivered_is_delivered_once(self, tenant: Tenant, receiver: Receiver) -> None:
        endpoint = add(tenant, receiver.url)
        tell(tenant)
        (line,) = log_of(tenant, endpoint)
        assert (line["status"], line["attempts"], line["attempted_at"]) == ("pending", 0, None)
        assert deliver(tenant, endpoint)
        assert not deliver(tenant, endpoint)
        (line,) = log_of(tenant, endpoint)
        assert (line["status"], line["attempts"], line["status_code"]) == ("delivered", 1, 200)
        assert (line["error"], line["next_attempt_at"]) == (None, None)
        assert abs(line["attempted_at"] - time.time()) < 60
        assert len(receiver.received) == 1

    @pytest.mark.parametrize("status", [300, 302, 400, 410, 500, 503])
    def test_whatever_is_not_2xx_is_tried_again(
        self, tenant: Tenant, status: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with receiving(lambda request: request.reply(status)) as receiver:
            endpoint = add(tenant, receiver.url)
            tell(tenant)
            assert not deliver(tenant, endpoint)
        (line,) = log_of(tenant, endpoint)
        assert (line["status"], line["attempts"], line["status_code"]) == ("pending", 1, status)
        assert f"status {status}" in line["error"]
        assert 2 <= line["next_attempt_at"] - time.time() <= 8
        assert not deliver(tenant, endpoint), "too soon"
        with read_only(tenant.server.database) as session:
            row = session.get_one(WebhookDelivery, line["id"])
            kept = repr({name: getattr(row, name) for name in WebhookDelivery.__table__.columns.keys()})  # noqa: SIM118
        # What httpx logs of requests is switched off by every command (app/cli/common.py).
        logged = [each.getMessage() for each in caplog.records if each.name.startswith("app")]
        for text in (kept, json.dumps(line), *logged):
            assert CANARY not in text
            assert endpoint["signing_secret"].removeprefix("whsec_") not in text

    def test_receiver_that_is_down_gets_it_when_it_is_back(self, tenant: Tenant) -> None:
        with socket.create_server(("127.0.0.1", 0)) as held:
            port = held.getsockname()[1]
        endpoint = add(tenant, f"http://127.0.0.1:{port}/hook")
        tell(tenant)
        assert not deliver(tenant, endpoint)
        (line,) = log_of(tenant, endpoint)
        assert line["error"] == "the connection failed (ConnectError)"
        assert line["status_code"] is None
        with receiving() as receiver:
            set_endpoint(tenant, endpoint, url=receiver.url)
            set_deliveries(tenant, endpoint, next_attempt_at_ms=now_ms())
            assert deliver(tenant, endpoint)
            assert receiver.received[0].headers["webhook-id"] == line["event_id"]
        (line,) = log_of(tenant, endpoint)
        assert (line["status"], line["attempts"], line["error"]) == ("delivered", 2, None)

    def test_slow_receiver_runs_out_of_time(self, tenant: Tenant) -> None:
        leave = threading.Event()
        hurried = tenant.server.settings.model_copy(update={"webhook_timeout_s": 0.2})
        with receiving(lambda _: leave.wait(20) and None) as receiver:
            endpoint = add(tenant, receiver.url)
            tell(tenant)
            assert not deliver_next(tenant.server.database, hurried, endpoint["id"])
            leave.set()
        assert log_of(tenant, endpoint)[0]["error"] == "there was no reply within 0.2 s"

    def test_name_of_ours_is_refused_without_a_connection(self, tenant: Tenant, receiver: Receiver) -> None:
        # 127.0.0.1 is allowed here; the name that leads there is not.
        endpoint = add(tenant, f"https://localhost:{receiver.server_port}/")
        tell(tenant)
        assert not deliver(tenant, endpoint)
        assert "not of the public internet" in log_of(tenant, endpoint)[0]["error"]
        assert receiver.connections == 0

    def test_unexpected_error_ends_with_the_others(
        self, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def broken(*_: Any, **__: Any) -> int:
            raise KeyError("internal detail")

        monkeypatch.setattr(delivery, "post", broken)
        endpoint = add(tenant, "https://hooks.example/x")
        tell(tenant)
        assert not deliver(tenant, endpoint)
        (line,) = log_of(tenant, endpoint)
        assert (line["status"], line["attempts"]) == ("pending", 1)
        assert "internal detail" not in line["error"]

    def test_many_at_once_send_it_once(self, tenant: Tenant, receiver: Receiver) -> None:
        endpoint = add(tenant, receiver.url)
        tell(tenant)
        results = at_once(8, lambda _: deliver(tenant, endpoint))
        assert sorted(results) == [False] * 7 + [True]
        assert len(receiver.received) == 1

    def test_what_a_killed_sender_held_is_sent_by_another(self, tenant: Tenant, receiver: Receiver) -> None:
        endpoint = add(tenant, receiver.url)
        tell(tenant)
        with unit_of_work(tenant.server.database) as session:
            held = repository.claim_due(session, endpoint["id"], lease_ms=60_000)
        assert held is not None
        assert not deliver(tenant, endpoint), "its lease has not ended"
        set_deliveries(tenant, endpoint, next_attempt_at_ms=now_ms())
        assert deliver(tenant, endpoint)
        # It was not dead after all: what it reports comes too late to count.
        with unit_of_work(tenant.server.database) as session:
            record(session, held, Outcome(None, "there was no reply"))
        (line,) = log_of(tenant, endpoint)
        assert (line["status"], line["attempts"], line["error"]) == ("delivered", 2, None)


class TestGivingUp:
    @pytest.fixture
    def broken(self, tenant: Tenant) -> Iterator[dict[str, Any]]:
        """An endpoint whose receiver answers 500, and which waits for one event."""
        with receiving(lambda request: request.reply(500)) as receiver:
            endpoint = add(tenant, receiver.url)
            tell(tenant)
            yield endpoint

    def test_after_72_hours_delivery_and_endpoint_are_given_up_and_say_so(
        self, tenant: Tenant, broken: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        try_for_72_hours(tenant, broken)
        (line,) = log_of(tenant, broken)
        assert (line["status"], line["next_attempt_at"]) == ("failed", None)
        assert line["error"] == "given up after 1 attempts; the last: the receiver answered with status 500"
        found = tenant.get(f"{PATH}/{broken['id']}")
        assert not found["enabled"]
        assert "has taken no delivery since" in found["disabled_reason"]
        assert "status 500" in found["disabled_reason"]
        assert f"the webhook endpoint {broken['id']} is disabled" in caplog.text
        tell(tenant)
        assert len(log_of(tenant, broken)) == 1

    def test_last_attempt_is_not_put_off_beyond_the_end(self, tenant: Tenant, broken: dict[str, Any]) -> None:
        set_deliveries(tenant, broken, tried_since_ms=now_ms() - GIVE_UP_AFTER_MS + 600_000)
        assert not deliver(tenant, broken)
        (line,) = log_of(tenant, broken)
        assert line["status"] == "pending"
        assert 590 <= line["next_attempt_at"] - time.time() <= 601

    def test_endpoint_that_took_something_meanwhile_stays(
        self, tenant: Tenant, broken: dict[str, Any]
    ) -> None:
        set_deliveries(tenant, broken, tried_since_ms=now_ms() - GIVE_UP_AFTER_MS - 1000)
        with unit_of_work(tenant.server.database) as session:
            repository.note_success(session, broken["id"])
        assert not deliver(tenant, broken)
        assert log_of(tenant, broken)[0]["status"] == "failed"
        assert tenant.get(f"{PATH}/{broken['id']}")["enabled"]

    def test_sender_that_was_away_for_days_gives_up_nothing_untried(
        self, tenant: Tenant, broken: dict[str, Any]
    ) -> None:
        set_deliveries(tenant, broken, next_attempt_at_ms=now_ms() - 2 * GIVE_UP_AFTER_MS)
        assert not deliver(tenant, broken)
        assert log_of(tenant, broken)[0]["status"] == "pending"

    def test_enabled_again_it_gets_what_is_redelivered(
        self, tenant: Tenant, broken: dict[str, Any], receiver: Receiver
    ) -> None:
        try_for_72_hours(tenant, broken)
        (line,) = log_of(tenant, broken)
        path = f"{PATH}/{broken['id']}"
        again = f"{path}/deliveries/{line['id']}/redeliver"
        refused(tenant.http.post(again), 409, code="webhook_endpoint_disabled")
        found = tenant.http.post(path, json={"enabled": True, "url": receiver.url}).json()
        assert (found["enabled"], found["disabled_reason"]) == (True, None)
        reply = tenant.http.post(again)
        assert (reply.status_code, reply.json()["status"]) == (200, "pending")
        assert deliver(tenant, broken)
        assert receiver.received[0].headers["webhook-id"] == line["event_id"]
        assert log_of(tenant, broken)[0]["status"] == "delivered"
        refused(tenant.http.post(f"{path}/deliveries/whdel_x/redeliver"), 404, param="delivery_id")

    def test_enabled_again_it_has_another_72_hours(self, tenant: Tenant, broken: dict[str, Any]) -> None:
        tell(tenant)
        try_for_72_hours(tenant, broken)
        path = f"{PATH}/{broken['id']}"
        assert tenant.http.post(path, json={"enabled": True}).status_code == 200
        line = log_of(tenant, broken)[0]
        tenant.http.post(f"{path}/deliveries/{line['id']}/redeliver")
        assert not deliver(tenant, broken)
        assert log_of(tenant, broken)[0]["status"] == "pending"
        assert tenant.get(path)["enabled"]

    def test_disabled_by_the_client_it_gets_nothing_more(self, tenant: Tenant, receiver: Receiver) -> None:
        endpoint = add(tenant, receiver.url)
        tell(tenant)
        tenant.http.post(f"{PATH}/{endpoint['id']}", json={"enabled": False})
        assert not deliver(tenant, endpoint)
        (line,) = log_of(tenant, endpoint)
        assert (line["status"], line["attempts"], line["error"]) == ("failed", 0, DISABLED)
        assert receiver.connections == 0


class TestTest:
    def test_sample_is_sent_now_and_logged(self, tenant: Tenant, receiver: Receiver) -> None:
        endpoint = add(tenant, receiver.url, ENDS[0])
        found = tenant.openai.webhooks.test(endpoint["id"], event_type="fine_tuning.job.failed")
        assert (found.status_code, found.event_type, found.success) == (200, ENDS[1], True)
        assert found.webhook_endpoint_id == endpoint["id"]
        (got,) = receiver.received
        assert takes(endpoint["signing_secret"], got)
        assert json.loads(got.body)["data"] == {"id": "ftjob-sample"}
        (line,) = log_of(tenant, endpoint)
        assert (line["status"], line["attempts"], line["status_code"]) == ("delivered", 1, 200)

    def test_status_of_a_failure_is_returned_and_nothing_else_of_it(self, tenant: Tenant) -> None:
        with receiving(lambda request: request.reply(500)) as receiver:
            endpoint = add(tenant, receiver.url)
            reply = tenant.http.post(f"{PATH}/{endpoint['id']}/test", json={"event_type": ENDS[0]})
        assert (reply.status_code, reply.json()["status_code"]) == (200, 500)
        assert CANARY not in reply.text
        (line,) = log_of(tenant, endpoint)
        assert (line["status"], line["next_attempt_at"]) == ("failed", None)
        assert tenant.get(f"{PATH}/{endpoint['id']}")["enabled"]

    def test_no_reply_is_an_error_in_words(self, tenant: Tenant, receiver: Receiver) -> None:
        endpoint = add(tenant, f"https://localhost:{receiver.server_port}/")
        reply = tenant.http.post(f"{PATH}/{endpoint['id']}/test", json={"event_type": ENDS[0]})
        assert "not of the public internet" in refused(reply, 400, code="webhook_not_delivered")
        assert receiver.connections == 0
        assert log_of(tenant, endpoint)[0]["status"] == "failed"

    def test_unknown_event_is_refused(self, tenant: Tenant) -> None:
        endpoint = add(tenant, "https://hooks.example/x")
        reply = tenant.http.post(f"{PATH}/{endpoint['id']}/test", json={"event_type": "batch.completed"})
        refused(reply, 400, param="event_type")

    def test_slow_receivers_hold_up_no_one_else(self, tenant: Tenant) -> None:
        # More than the API has threads for its handlers.
        leave = threading.Event()
        with receiving(lambda _: leave.wait(30) and None) as receiver:
            endpoint = add(tenant, receiver.url)
            path = f"{PATH}/{endpoint['id']}/test"
            with httpx.Client(
                base_url=tenant.server.url,
                headers=tenant.http.headers,
                timeout=60,
                limits=httpx.Limits(max_connections=None),
            ) as client:
                threads = [
                    threading.Thread(
                        target=client.post, args=(path,), kwargs={"json": {"event_type": ENDS[0]}}
                    )
                    for _ in range(50)
                ]
                for thread in threads:
                    thread.start()
                wait_for(lambda: len(receiver.received) == 50)
                started = time.monotonic()
                assert tenant.get(PATH)["data"][0]["id"] == endpoint["id"]
                assert time.monotonic() - started < 3
                leave.set()
                for thread in threads:
                    thread.join()


def wait_for(condition: Any, timeout_s: float = 20) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loop look often."""
    monkeypatch.setattr(delivery, "POLL_S", 0.02)


class running:  # noqa: N801  (It reads as a statement.)
    """The loop in a thread, for the length of a block."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.stop = threading.Event()
        self.thread = threading.Thread(target=run_deliveries, args=(database, settings, self.stop))

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.mark.usefixtures("quick")
class TestLoop:
    def test_slow_receiver_holds_up_itself_and_nobody_else(self, tenant: Tenant, receiver: Receiver) -> None:
        leave = threading.Event()

        def hang(request: Request) -> None:
            leave.wait(30)
            request.reply()

        server = tenant.server
        with receiving(hang) as slow, running(server.database, server.settings):
            hung = [add(tenant, slow.url) for _ in range(5)]
            good = add(tenant, receiver.url)
            for _ in range(4):
                tell(tenant)
            wait_for(lambda: len(receiver.received) == 4)
            assert {each["status"] for each in log_of(tenant, good)} <= {"delivered", "pending"}
            # One at a time for each, however many wait.
            wait_for(lambda: len(slow.received) >= len(hung))
            assert len(slow.received) == len(hung)
            leave.set()
            wait_for(lambda: len(slow.received) == 4 * len(hung))

    def test_database_that_is_away_is_waited_for(
        self, tenant: Tenant, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, failures = repository.list_due_endpoints, iter(range(3))

        def failing(*args: Any, **kwargs: Any) -> Any:
            if next(failures, None) is not None:
                raise OperationalError("SELECT", {}, Exception("gone"))
            return real(*args, **kwargs)

        monkeypatch.setattr(repository, "list_due_endpoints", failing)
        add(tenant, receiver.url)
        tell(tenant)
        with running(tenant.server.database, tenant.server.settings):
            wait_for(lambda: receiver.received)

    def test_log_that_cannot_be_pruned_stops_nothing(self, tenant: Tenant, receiver: Receiver) -> None:
        add(tenant, receiver.url)
        tell(tenant)
        # So many days ago there was no calendar.
        settings = tenant.server.settings.model_copy(update={"webhook_log_days": 1_000_000})
        with pytest.raises(OverflowError):
            prune(tenant.server.database, settings)
        with running(tenant.server.database, settings):
            wait_for(lambda: receiver.received)

    def test_old_deliveries_leave_the_log(self, tenant: Tenant, receiver: Receiver) -> None:
        endpoint = add(tenant, receiver.url)
        for _ in range(2):
            tell(tenant)
        assert deliver(tenant, endpoint)
        prune(tenant.server.database, tenant.server.settings)
        assert len(log_of(tenant, endpoint)) == 2
        set_deliveries(tenant, endpoint, created_at=utc_now() - timedelta(days=31))
        prune(tenant.server.database, tenant.server.settings)
        assert [each["status"] for each in log_of(tenant, endpoint)] == ["pending"]


class TestLog:
    def test_is_paged_newest_first(self, tenant: Tenant) -> None:
        endpoint = add(tenant, "https://hooks.example/x")
        for _ in range(3):
            tell(tenant)
        path = f"{PATH}/{endpoint['id']}/deliveries"
        first = tenant.get(path, limit=2)
        rest = tenant.get(path, limit=2, after=first["last_id"])
        assert (len(first["data"]), first["has_more"], rest["has_more"]) == (2, True, False)
        ids = [each["id"] for page in (first, rest) for each in page["data"]]
        assert len(set(ids)) == 3
        assert ids == [each["id"] for each in log_of(tenant, endpoint)]

    def test_goes_with_its_endpoint(self, tenant: Tenant) -> None:
        endpoint = add(tenant, "https://hooks.example/x")
        tell(tenant)
        assert tenant.http.delete(f"{PATH}/{endpoint['id']}").json() == {
            "id": endpoint["id"],
            "object": "webhook_endpoint.deleted",
            "deleted": True,
        }
        with read_only(tenant.server.database) as session:
            rows = select(WebhookDelivery.id).where(WebhookDelivery.project_id == tenant.project_id)
            assert session.scalars(rows).all() == []
        assert not deliver(tenant, endpoint)


class TestProcess:
    def test_command_delivers_and_ends_when_told(self, tenant: Tenant, receiver: Receiver) -> None:
        add(tenant, receiver.url)
        tell(tenant)
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "webhooks", "deliver"],
            env=tenant.server.settings.child_environment(),
        )
        try:
            wait_for(lambda: receiver.received or process.poll() is not None, 60)
            assert receiver.received
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


class TestDocumentation:
    def test_receiver_of_the_documentation_takes_what_is_ours_and_nothing_else(
        self, tenant: Tenant, tmp_path: Path
    ) -> None:
        text = (Path(__file__).parents[2] / "docs/webhooks.md").read_text(encoding="utf-8")
        (program,) = (each for each in re.findall(r"```python\n(.*?)```", text, re.S) if "HTTPServer" in each)
        with socket.create_server(("127.0.0.1", 0)) as held:
            port = held.getsockname()[1]
        url = f"http://127.0.0.1:{port}/tether"
        endpoint = add(tenant, url)
        tell(tenant)
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(port)],
            env={**os.environ, "WEBHOOK_SECRET": endpoint["signing_secret"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            wait_for(lambda: is_open(port), 60)
            assert deliver(tenant, endpoint)
            with receiving() as recorder:
                set_endpoint(tenant, endpoint, url=recorder.url)
                tell(tenant, EventType.SAFETY_ALERT)
                assert deliver(tenant, endpoint)
                (got,) = recorder.received
            stale = {**got.headers, "webhook-timestamp": str(int(got.headers["webhook-timestamp"]) - 301)}
            for body, headers in (
                (got.body + b" ", got.headers),
                (got.body, stale),
                (got.body, {**got.headers, "webhook-signature": "v1,AAAA é"}),
                (got.body, {"content-type": "application/json"}),
            ):
                sent = {name: value.encode() for name, value in headers.items() if name != "content-length"}
                assert httpx.post(url, content=body, headers=sent).status_code == 401
            # The same again, within the time: taken, and done once.
            for _ in range(2):
                assert httpx.post(url, content=got.body, headers=got.headers).status_code == 204
        finally:
            process.terminate()
            output, _ = process.communicate(timeout=60)
        assert output.split() == [ENDS[0], "ftjob-1", "fine_tuning.job.safety_alert", "ftjob-1"]


def is_open(port: int) -> bool:
    """Say whether something listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
