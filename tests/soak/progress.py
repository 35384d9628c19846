"""When the next step of any job was recorded, as the database has it."""

import threading
import time

import psycopg

from app.domain.ledger import peek_kind

POLL_S = 0.25


class Progress:
    """Looks at new records all the time, over a connection of its own that it makes again when it is cut."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._seen: dict[str, int] = {}
        self._waiting: list[tuple[str, float]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.recoveries_s: dict[str, list[float]] = {}
        """By kind of fault: from it to the next step of any job."""

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def expect(self, kind: str) -> None:
        """Measure from now to the next step. What is recorded of before it does not count, as far as one can see that."""
        with self._lock:
            self._waiting.append((kind, time.monotonic()))

    def _run(self) -> None:
        connection: psycopg.Connection | None = None
        while not self._stop.wait(POLL_S):
            try:
                connection = connection or psycopg.connect(self._url, autocommit=True, connect_timeout=5)
                looked_at = time.monotonic()
                if self._has_stepped(connection):
                    self._note(looked_at)
            except psycopg.Error:
                connection = None
        if connection is not None:
            connection.close()

    def _has_stepped(self, connection: psycopg.Connection) -> bool:
        found = False
        for work_id, size in connection.execute(
            "SELECT id, ledger_size FROM work WHERE kind = 'train' AND state IN ('running', 'pausing')"
        ).fetchall():
            before = self._seen.get(work_id, size)
            self._seen[work_id] = size
            if size > before:
                leaves = connection.execute(
                    "SELECT leaf FROM ledger_leaves WHERE work_id = %s AND seq >= %s AND seq < %s",
                    (work_id, before, size),
                ).fetchall()
                found = found or any(peek_kind(bytes(leaf)) == "step" for (leaf,) in leaves)
        return found

    def _note(self, looked_at: float) -> None:
        with self._lock:
            # A step that is found at one look may have come right after the look before.
            done = [each for each in self._waiting if looked_at - each[1] > POLL_S]
            self._waiting = [each for each in self._waiting if each not in done]
        for kind, since in done:
            self.recoveries_s.setdefault(kind, []).append(looked_at - since)
