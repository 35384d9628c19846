"""Faults 18 and 19: receivers of webhooks and the object store are away or flaky, and a machine is lost beside its bucket."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import storage
from app.database import Database, open_engine
from app.queue import build_publisher
from tests.faults.checks import end_check
from tests.faults.flaky_store import FlakyStore, Mood, flaky_store
from tests.faults.installation import FAST, SLOWLY, Installation, Template, desk, installed, reference_run
from tests.object_store import make_bucket, point_at
from tests.support import settings_in
from tests.webhook_receiver import Received, Request, receiving
from worker.miniature.corpus import training_rows

ROWS = training_rows("clean", n=12)
"""A file that nobody uses."""


# --- webhooks ---------------------------------------------------------------------------------------------


def drip(request: Request) -> None:
    """Begin a reply that never ends, a byte now and then."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(600):
        request.wfile.write(b" ")
        time.sleep(0.1)


def add_endpoint(installation: Installation, url: str) -> str:
    """Have the ends of jobs told to a URL."""
    body = {"name": "hook", "url": url, "event_types": ["fine_tuning.job.succeeded"]}
    reply = installation.request("POST", "/v1/webhook_endpoints", json=body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


def ids(received: list[Received]) -> set[str]:
    """Return the ids of what a receiver was told."""
    return {each.headers["webhook-id"] for each in received}


def deliveries(installation: Installation, endpoint: str) -> list[dict[str, Any]]:
    """Return what was to be delivered to an endpoint."""
    reply = installation.request("GET", f"/v1/webhook_endpoints/{endpoint}/deliveries")
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["data"]
    return found


def test_receivers_that_are_down_or_drip_hold_up_neither_the_job_nor_the_others(
    sqlite_template: Template, tmp_path: Path
) -> None:
    reference = reference_run(sqlite_template, tmp_path)
    with (
        socket.socket() as taken,
        receiving(drip) as dripping,
        receiving() as good,
        installed(
            sqlite_template, tmp_path, webhook_private_hosts="127.0.0.1", webhook_timeout_s=1
        ) as installation,
        desk(installation),
    ):
        # Nobody else gets this port, and nobody listens on it yet.
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        down = add_endpoint(installation, f"http://127.0.0.1:{port}/hook")
        slow = add_endpoint(installation, dripping.url)
        well = add_endpoint(installation, good.url)
        job_id = installation.submit()
        installation.finish(job_id)
        end_check(installation, job_id, reference=reference)
        installation.wait(
            lambda: deliveries(installation, well)[0]["status"] == "delivered",
            "the delivery to the receiver that is well",
        )
        installation.wait(
            lambda: deliveries(installation, slow)[0]["error"], "the first attempt at the dripping one"
        )
        assert deliveries(installation, slow)[0]["error"] == "there was no reply within 1 s"
        assert deliveries(installation, down)[0]["status"] == "pending"
        taken.close()
        with receiving(port=port) as back:
            installation.wait(lambda: back.received, "the delivery to the receiver that is back")
            # Whoever is slow to answer may hear of it twice.
            assert ids(back.received) == ids(good.received)
            assert len(ids(good.received)) == 1


# --- object store -----------------------------------------------------------------------------------------


@pytest.fixture
def store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyStore]:
    """A flaky server before a real object store, and the environment that leads to it."""
    with flaky_store(s3_endpoint) as server:
        point_at(monkeypatch, server.url)
        yield server


@pytest.fixture
def bucket_installation(
    sqlite_template: Template, s3_endpoint: str, store: FlakyStore, tmp_path: Path
) -> Iterator[Installation]:
    """A copy of the template whose bytes are in a bucket behind that server."""
    url = f"s3://{make_bucket(s3_endpoint)}"
    with installed(sqlite_template, tmp_path, storage_url=url) as installation:
        for path in (sqlite_template.home / "storage").glob("??/*"):
            storage.store_file(url, path)
        # What is left in the folder was the template's.
        for path in installation.settings.storage_dir.glob("??/*"):
            path.unlink()
        with desk(installation):
            yield installation


@pytest.mark.parametrize("mood", ["unavailable", "slow", "cutting"])
def test_a_flaky_store_delays_a_job_and_loses_nothing(
    bucket_installation: Installation,
    sqlite_template: Template,
    store: FlakyStore,
    tmp_path: Path,
    mood: Mood,
) -> None:
    installation = bucket_installation
    reference = reference_run(sqlite_template, tmp_path)
    job_id = installation.submit()
    trainer = installation.start_trainer(SLOWLY)
    installation.wait_for_step(job_id, 4)
    store.turn(mood)
    if mood == "unavailable":
        refused = installation.send_file(ROWS, timeout=120)
        assert refused.status_code == 503
        assert "127.0.0.1" not in refused.text
        trainer.join(120)
        # Nothing was at fault with the job, so none of its attempts counts.
        work = installation.work(job_id)
        assert (work.state, work.infrastructure_failures) == ("queued", 1), installation.read_log()
    else:
        installation.wait(
            lambda: store.refused[mood] >= 6 or not trainer.is_alive(), f"a store that is {mood}"
        )
    store.turn("well")
    trainer.join(120)
    installation.finish(job_id)
    assert store.refused[mood] > 0
    end_check(installation, job_id, reference=reference)
    installation.upload(ROWS)


def test_a_machine_that_is_lost_is_replaced_by_another_with_nothing_but_database_and_bucket(
    bucket_installation: Installation, sqlite_template: Template, tmp_path: Path
) -> None:
    installation = bucket_installation
    reference = reference_run(sqlite_template, tmp_path)
    job_id = installation.submit()
    trainer = installation.start_trainer(SLOWLY)
    installation.wait_for_step(job_id, 10)
    assert trainer.pid is not None
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.join()
    # Nobody is left who knows that it died; the lease runs out.
    settings = settings_in(
        tmp_path / "another-machine",
        **FAST,
        database_url=installation.settings.database_url,
        storage_url=installation.settings.storage_url,
    )
    database = Database(open_engine(settings.database_url), build_publisher(settings))
    elsewhere = Installation(settings, database, installation.training_file, installation.url)
    try:
        elsewhere.finish(job_id)
    finally:
        elsewhere.close()
    end_check(installation, job_id, reference=reference)
    (resumed,) = [
        leaf["body"] for leaf in installation.leaves(job_id) if leaf["t"].startswith("tether.job.resume/")
    ]
    assert resumed["from_step"] > 0
