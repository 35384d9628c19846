"""Knocking: what is sent where, and that a broker which is away changes nothing."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection, Queue

from app.errors import BrokerUnavailable
from app.queue import WAKE, build_celery, build_publisher, check_broker
from app.settings import Settings
from tests.support import settings_in

NOBODY = "redis://127.0.0.1:1/0"
"""Nobody listens on port 1."""


@pytest.fixture
def queues() -> tuple[str, str]:
    """Two queues that nobody else uses, whatever else lies in the Redis that the tests may write to."""
    mine = uuid.uuid4().hex
    return f"gpu-{mine}", f"cpu-{mine}"


@pytest.fixture(params=["files", "redis"])
def broker_settings(
    request: pytest.FixtureRequest, tmp_path: Path, queues: tuple[str, str]
) -> Iterator[Settings]:
    """Settings for each of the two brokers."""
    if request.param == "files":
        yield settings_in(tmp_path)
        return
    url = request.getfixturevalue("redis_url")
    yield settings_in(tmp_path, broker_url=url)
    with redis.Redis.from_url(url) as client:
        for queue in queues:
            for key in client.keys(f"*{queue}"):
                client.delete(key)


def receive(settings: Settings, queue: str) -> list[Any]:
    """Take every message of a queue, as a worker does, and return (task, arguments) of each."""
    found = []
    connection: Connection
    with build_celery(settings).connection_for_read() as connection, connection.channel() as channel:
        bound = Queue(queue)(channel)
        bound.declare()
        while (message := bound.get(no_ack=True)) is not None:
            assert message.content_type == "application/json"
            found.append((message.headers["task"], message.decode()[0]))
    return found


class TestBuildPublisher:
    def test_message_carries_the_id_to_its_queue(
        self, broker_settings: Settings, queues: tuple[str, str]
    ) -> None:
        gpu, cpu = queues
        build_publisher(broker_settings)([(gpu, "ftjob-1"), (cpu, "work-2"), (gpu, "ftjob-3")])
        assert receive(broker_settings, gpu) == [(WAKE, ["ftjob-1"]), (WAKE, ["ftjob-3"])]
        assert receive(broker_settings, cpu) == [(WAKE, ["work-2"])]

    def test_redis_that_is_away_raises_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        build_publisher(settings_in(tmp_path, broker_url=NOBODY))([("gpu", "ftjob-1")])
        assert "ftjob-1 waits until the reconciler announces it again" in caplog.text

    def test_folder_that_is_gone_raises_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        publish = build_publisher(settings_in(tmp_path))
        (tmp_path / "queue").rmdir()
        (tmp_path / "queue").write_text("a file where the folder should be")
        publish([("gpu", "ftjob-1")])
        assert "ftjob-1 waits until the reconciler announces it again" in caplog.text


class TestCheckBroker:
    def test_broker_that_works_passes(self, broker_settings: Settings) -> None:
        check_broker(broker_settings)

    def test_broker_that_is_away_raises(self, tmp_path: Path) -> None:
        with pytest.raises(BrokerUnavailable, match=r"cannot be reached .* TETHER_BROKER_URL"):
            check_broker(settings_in(tmp_path, broker_url=NOBODY))
