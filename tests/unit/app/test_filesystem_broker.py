"""The queue of files, through kombu, as Celery uses it."""

import json
import multiprocessing
import os
import threading
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from kombu import Connection

from app.filesystem_broker import Channel


def open_channel(folder: Path) -> Channel:
    """Return a channel on a folder of messages."""
    connection = Connection(
        transport="app.filesystem_broker:Transport", transport_options={"data_folder": str(folder)}
    )
    return connection.channel()


def message(n: int) -> dict[str, Any]:
    """Return a numbered message, with what kombu takes for granted of one."""
    return {"n": n, "properties": {"delivery_tag": str(n)}}


def drain(folder: Path, into: list[int]) -> None:
    """Take messages until none is left."""
    channel = open_channel(folder)
    while True:
        try:
            into.append(channel._get("gpu")["n"])
        except Empty:
            return


def drain_in_a_process(folder: Path, results: "multiprocessing.Queue[list[int]]") -> None:
    """Take messages until none is left, and send home what was taken."""
    taken: list[int] = []
    drain(folder, taken)
    results.put(taken)


class TestPut:
    def test_message_appears_whole(self, tmp_path: Path) -> None:
        # A reader that spins meanwhile must never see a name whose content is not there yet.
        big = "x" * 1_000_000
        channel, done, damaged = open_channel(tmp_path), threading.Event(), []

        def look() -> None:
            while not done.is_set():
                for path in tmp_path.glob("[0-9]*.gpu.msg"):
                    if not path.read_bytes().endswith(b"}"):
                        damaged.append(path)

        watcher = threading.Thread(target=look)
        watcher.start()
        for _ in range(10):
            channel._put("gpu", {"body": big})
        done.set()
        watcher.join()
        assert damaged == []
        assert channel._size("gpu") == 10

    def test_crash_while_writing_leaves_no_message(self, tmp_path: Path) -> None:
        (tmp_path / ".00000000000000000001_a.gpu.msg.part").write_text('{"n": 1')
        channel = open_channel(tmp_path)
        assert channel._size("gpu") == 0
        with pytest.raises(Empty):
            channel._get("gpu")


class TestGet:
    def test_order_is_that_of_putting(self, tmp_path: Path) -> None:
        channel = open_channel(tmp_path)
        for n in range(20):
            channel._put("gpu", message(n))
        taken: list[int] = []
        drain(tmp_path, taken)
        assert taken == list(range(20))

    def test_queues_are_apart(self, tmp_path: Path) -> None:
        channel = open_channel(tmp_path)
        channel._put("cpu", message(1))
        with pytest.raises(Empty):
            channel._get("gpu")
        assert channel._get("cpu") == message(1)

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"5", b"[]", b"{}", b'{"properties": 5}'])
    def test_unreadable_file_is_set_aside_and_the_next_is_read(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "00000000000000000001_a.gpu.msg").write_bytes(content)
        channel = open_channel(tmp_path)
        channel._put("gpu", message(2))
        assert channel._get("gpu") == message(2)
        assert (tmp_path / "00000000000000000001_a.gpu.unreadable").read_bytes() == content
        assert channel._size("gpu") == 0

    def test_two_processes_get_each_message_once(self, tmp_path: Path) -> None:
        channel = open_channel(tmp_path)
        for n in range(500):
            (tmp_path / f"{n:020d}_a.gpu.msg").write_text(json.dumps(message(n)))
        assert channel._size("gpu") == 500
        context = multiprocessing.get_context("spawn")
        results: multiprocessing.Queue[list[int]] = context.Queue()
        readers = [
            context.Process(target=drain_in_a_process, args=(tmp_path, results), daemon=True)
            for _ in range(2)
        ]
        for reader in readers:
            reader.start()
        taken = [results.get(timeout=60) for _ in readers]
        for reader in readers:
            reader.join()
        assert sorted(taken[0] + taken[1]) == list(range(500))
        assert list(tmp_path.iterdir()) == []

    def test_two_threads_get_each_message_once(self, tmp_path: Path) -> None:
        for n in range(500):
            (tmp_path / f"{n:020d}_a.gpu.msg").write_text(json.dumps(message(n)))
        taken: list[int] = []
        readers = [threading.Thread(target=drain, args=(tmp_path, taken)) for _ in range(2)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert sorted(taken) == list(range(500))


class TestPurge:
    def test_only_this_queue_is_emptied(self, tmp_path: Path) -> None:
        channel = open_channel(tmp_path)
        for queue in ("gpu", "gpu", "cpu"):
            channel._put(queue, {"n": 1})
        assert channel._purge("gpu") == 2
        assert (channel._size("gpu"), channel._size("cpu")) == (0, 1)


class TestVerifyConnection:
    def test_folder_is_made(self, tmp_path: Path) -> None:
        channel = open_channel(tmp_path / "queue")
        assert channel.connection.verify_connection(channel.connection)
        assert (tmp_path / "queue").stat().st_mode & 0o777 == 0o700

    def test_folder_that_cannot_be_is_not_connected(self) -> None:
        channel = open_channel(Path(os.devnull) / "queue")
        assert not channel.connection.verify_connection(channel.connection)
