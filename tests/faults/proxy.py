"""A TCP proxy to put between a process and its database, broker or storage, and to cut, stall and refuse with."""

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

CHUNK_BYTES = 65_536
POLL_S = 0.05
ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER by which a closed connection is reset: the other end sees an error, not an end."""


@dataclass
class _Cut:
    """What a connection is cut at."""

    pattern: bytes
    forward: bool
    skip: int
    struck: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """Passes bytes between whoever connects to `port` and the target, until it is told to do something else."""

    def __init__(self, target_port: int, target_host: str = "127.0.0.1") -> None:
        self._target = target_host, target_port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.connections = 0
        """How many have been made."""
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._closed = threading.Event()
        self._cut: _Cut | None = None
        self._threads = [threading.Thread(target=self._accept, name="proxy")]
        self._threads[0].start()

    def cut(self) -> None:
        """Reset every connection that is open; new ones are taken as before."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            _reset(pair)

    def stall(self) -> None:
        """Let nothing pass from now on; connections stay open, and new ones are accepted."""
        self._flowing.clear()

    def flow(self) -> None:
        """Let everything pass again."""
        self._flowing.set()

    def refuse(self) -> None:
        """Reset every connection, and each new one at once."""
        self._refusing = True
        self.cut()

    def allow(self) -> None:
        """Take connections again."""
        self._refusing = False

    def cut_at(self, pattern: bytes, *, forward: bool, skip: int = 0) -> threading.Event:
        """Reset the connection by which a client sends `pattern`, once, after `skip` others have sent it.

        With `forward` the target gets it and its answer is dropped, so that the target has done what the client will
        never know of; without, the target never sees it. The event that is returned is set when that has happened.
        """
        self._cut = cut = _Cut(pattern, forward, skip)
        return cut.struck

    def close(self) -> None:
        """End it, with every connection."""
        self._closed.set()
        self._flowing.set()
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            if not select.select([self._listening], [], [], POLL_S)[0]:
                continue
            client, _ = self._listening.accept()
            self.connections += 1
            if self._refusing:
                _reset((client,))
                continue
            try:
                target = socket.create_connection(self._target, timeout=10)
            except OSError:
                _reset((client,))
                continue
            for each in (client, target):
                each.settimeout(None)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.add((client, target))
            thread = threading.Thread(target=self._pass, args=(client, target), name="proxy-connection")
            self._threads.append(thread)
            thread.start()

    def _pass(self, client: socket.socket, target: socket.socket) -> None:
        try:
            self._pump(client, target)
        except (OSError, ValueError):
            pass  # It was cut, by us or by an end; ValueError is select's word for a closed socket.
        finally:
            with self._lock:
                self._pairs.discard((client, target))
            _reset((client, target))

    def _pump(self, client: socket.socket, target: socket.socket) -> None:
        while not self._closed.is_set():
            ready, _, _ = select.select([client, target], [], [], POLL_S)
            self._flowing.wait()
            for source in ready:
                data = source.recv(CHUNK_BYTES)
                if not data:
                    return
                if source is client and (cut := self._due(data)) is not None:
                    if cut.forward:
                        target.sendall(data)
                        # Only its answer shows that it has done it.
                        target.recv(CHUNK_BYTES)
                    _reset((client, target))
                    cut.struck.set()
                    return
                (target if source is client else client).sendall(data)

    def _due(self, data: bytes) -> _Cut | None:
        with self._lock:
            cut = self._cut
            if cut is None or cut.pattern not in data:
                return None
            if cut.skip > 0:
                cut.skip -= 1
                return None
            self._cut = None
            return cut


def _reset(sockets: tuple[socket.socket, ...]) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        each.close()


@contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    """Give a proxy to a port of this machine, and end it after."""
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
