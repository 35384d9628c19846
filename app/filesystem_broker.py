"""A Celery broker made of files in a folder: the default where no Redis is.

kombu's own `filesystem://` transport gives a file its final name before its content is in it, so a reader that
comes in between loses the message (celery/kombu#1551), and one unreadable file stops the worker. Here a
message appears whole, by rename, and an unreadable one is set aside. There is no fan-out: Tether uses none of
Celery's remote control.
"""

import contextlib
import json
import os
import time
import uuid
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import virtual

SUFFIX = ".msg"


class Channel(virtual.Channel):  # type: ignore[misc]  # kombu has no types.
    """Messages as files `<time_ns>_<uuid>.<queue>.msg`, taken in the order of their names."""

    do_restore = False

    @property
    def folder(self) -> Path:
        """The folder of the messages."""
        return Path(self.connection.client.transport_options["data_folder"])

    def _put(self, queue: str, message: Any, **_: Any) -> None:
        name = f"{time.time_ns():020d}_{uuid.uuid4().hex}.{queue}{SUFFIX}"
        aside = self.folder / f".{name}.part"
        with aside.open("w", encoding="utf-8") as file:
            json.dump(message, file)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(self.folder / name)

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        for path in self._messages(queue):
            taken = path.with_name(f".{path.name}.taken")
            try:
                # Of several readers, exactly one succeeds in renaming.
                path.rename(taken)
            except FileNotFoundError:
                continue
            try:
                message = json.loads(taken.read_text(encoding="utf-8"))
                _check_message(message)
            except ValueError:
                taken.rename(path.with_suffix(".unreadable"))
                continue
            taken.unlink()
            return message
        raise Empty

    def _size(self, queue: str) -> int:
        return len(self._messages(queue))

    def _purge(self, queue: str) -> int:
        messages = self._messages(queue)
        for path in messages:
            path.unlink(missing_ok=True)
        return len(messages)

    def _messages(self, queue: str) -> list[Path]:
        return sorted(self.folder.glob(f"[0-9]*.{queue}{SUFFIX}"))


def _check_message(message: Any) -> None:
    """Raise ValueError for what kombu takes for granted, and would stop the worker over."""
    properties = message.get("properties") if isinstance(message, dict) else None
    if not isinstance(properties, dict) or "delivery_tag" not in properties:
        raise ValueError("not a message")


class Transport(virtual.Transport):  # type: ignore[misc]  # kombu has no types.
    """The transport behind `safefs://`."""

    Channel = Channel
    driver_type = "filesystem"
    driver_name = "filesystem"
    default_port = 0
    # Each process declares the queues it uses, so the tables of the exchanges need not be shared.
    global_state = virtual.BrokerState()
    implements = virtual.Transport.implements.extend(asynchronous=False, exchange_type=frozenset(["direct"]))

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self.state = self.global_state
        self.polling_interval = client.transport_options.get("polling_interval", 0.2)

    def driver_version(self) -> str:
        """Name the version as kombu asks for it."""
        return "1"

    def verify_connection(self, connection: Any) -> bool:
        """Say whether the folder can be written."""
        folder = Path(connection.client.transport_options["data_folder"])
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.access(folder, os.W_OK)
