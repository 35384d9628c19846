"""The walls of a process that works: what it may reach, start and unpickle. A seat belt, not a prison.

Python tells a hook of every connection, every child process and every unpickled class before it happens, and a hook that
was set is never taken off. It sees what Python code does, ours and that of the libraries. It does not see machine code:
libpq's connection to the database, the object store's client, CUDA. Keeping these to their places is the work of the
network that the process runs in (docs/deploy.md).
"""

import ipaddress
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sqlalchemy.engine import make_url

from app.errors import JobFailure
from app.settings import Settings

log = logging.getLogger(__name__)

PORTS = {"postgresql": 5432, "redis": 6379, "rediss": 6379, "http": 80, "https": 443}
CHILD = (sys.executable, "-m", "worker.row_check")
"""The one program that work starts: it reads a file's rows, and has fewer rights than we."""

LOOPBACK = (("127.0.0.1", 0), ("::1", 0))
"""This machine's own address, at a port that nobody chose."""

Endpoint = tuple[str, int]


class WallHit(JobFailure):
    """The work tried what a process that works may not do."""

    code = "not_allowed"


class Walls:
    """What is allowed, and what was refused."""

    def __init__(self, settings: Settings) -> None:
        self._endpoints = frozenset(list_endpoints(settings))
        self._hosts = frozenset(host for host, _ in self._endpoints)
        self._sockets = frozenset(list_sockets(settings))
        self._resolved: set[Endpoint] = set()
        self._lock = threading.Lock()
        self._resolve = socket.getaddrinfo
        self.refused: str | None = None
        """The first thing that was refused, in words."""

    def allows_host(self, host: object) -> bool:
        """Tell whether a name may be looked up. None and the empty name are this machine, for which nobody is asked."""
        return not host or _plain(host) in self._hosts or _is_address(host)

    def allows_address(self, address: object) -> bool:
        """Tell whether a socket may speak to an address: a path, or a tuple of host, port and more."""
        if isinstance(address, str | bytes):
            return address in self._sockets
        if not isinstance(address, tuple) or len(address) < 2 or not isinstance(address[1], int):
            return False
        endpoint = _plain(address[0]), address[1]
        with self._lock:
            return endpoint in self._endpoints or endpoint in self._resolved

    def getaddrinfo(self, host: Any, port: Any, *rest: Any, **named: Any) -> list[Any]:
        """Look a name up as `socket.getaddrinfo` does, and remember which addresses it stands for."""
        found = self._resolve(host, port, *rest, **named)
        if (_plain(host), port) in self._endpoints:
            with self._lock:
                self._resolved |= {(_plain(each[4][0]), port) for each in found}
        return found

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Refuse what is not allowed. Python calls this before each thing that it tells of."""
        judge = JUDGES.get(event)
        if judge is not None:
            refused = judge(self, arguments)
            if refused is not None:
                self._refuse(refused)

    def check(self) -> None:
        """Raise WallHit once more where something was refused: a library may have swallowed it."""
        if self.refused is not None:
            raise WallHit(self.refused)

    def _refuse(self, what: str) -> None:
        log.error("the walls of this process refused %s", what)
        message = (
            f"the work tried {what}, which a process that works may not do; docs/deploy.md says what it may. Tell the operator:"
            " a model or a library does what nobody expected of it"
        )
        if self.refused is None:
            self.refused = message
        raise WallHit(message)


_walls: Walls | None = None


def raise_walls(settings: Settings) -> None:
    """Put the walls around this process, for as long as it lives."""
    global _walls  # noqa: PLW0603  (A hook is the process's own, and so is what it knows.)
    if _walls is not None:
        return
    _walls = Walls(settings)
    # What a name resolves to is known only to who asks. The hook sees the question alone.
    socket.getaddrinfo = _walls.getaddrinfo
    sys.addaudithook(_walls.hook)


def check_walls() -> None:
    """Raise WallHit where this process was refused something. Without walls nothing ever is."""
    if _walls is not None:
        _walls.check()


def list_endpoints(settings: Settings) -> Iterator[Endpoint]:
    """Yield host and port of everything that the settings name for work: database, broker, judge, MLflow."""
    database = make_url(settings.database_url)
    for host in (database.host or "").split(","):
        if host and not host.startswith("/"):
            yield _plain(host), database.port or PORTS["postgresql"]
    for url in (settings.broker_url, settings.judge_url, settings.mlflow_tracking_uri):
        parts = urlsplit(url)
        if parts.hostname and parts.scheme in PORTS:
            yield _plain(parts.hostname), parts.port or PORTS[parts.scheme]


def list_sockets(settings: Settings) -> Iterator[str]:
    """Yield the paths of Unix sockets that the settings name. The database's client speaks to its own unseen."""
    parts = urlsplit(settings.broker_url)
    if parts.scheme == "redis+socket":
        yield unquote(parts.path)


def _plain(host: object) -> str:
    """Return a name or address in one form."""
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    text = text.strip("[]").partition("%")[0].rstrip(".").lower()
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _is_address(host: object) -> bool:
    try:
        ipaddress.ip_address(_plain(host))
    except ValueError:
        return False
    return True


def _judge_connect(walls: Walls, arguments: tuple[Any, ...]) -> str | None:
    address = arguments[1]
    return None if walls.allows_address(address) else f"to connect to {_show(address)}"


def _judge_send(walls: Walls, arguments: tuple[Any, ...]) -> str | None:
    address = arguments[1]
    # Without an address the socket is connected, and was judged then.
    return None if address is None or walls.allows_address(address) else f"to send to {_show(address)}"


def _judge_bind(walls: Walls, arguments: tuple[Any, ...]) -> str | None:
    address = arguments[1]
    if isinstance(address, tuple) and address[:2] in LOOPBACK:
        # How libraries find out whether this machine has IPv6. Nobody from outside comes in there.
        return None
    return f"to listen at {_show(address)}"


def _judge_lookup(walls: Walls, arguments: tuple[Any, ...]) -> str | None:
    host = arguments[0]
    return None if walls.allows_host(host) else f"to look up the host {_plain(host)[:255]!r}"


def _judge_child(walls: Walls, arguments: tuple[Any, ...]) -> str | None:
    command = arguments[1]
    if isinstance(command, list | tuple) and tuple(map(str, command[: len(CHILD)])) == CHILD:
        return None
    # The arguments may hold anything; the program's name says enough.
    return f"to start the program {Path(str(arguments[0])).name[:80]!r}"


def _judge_program(walls: Walls, arguments: tuple[Any, ...]) -> str:
    return "to start another program"


def _judge_unpickling(walls: Walls, arguments: tuple[Any, ...]) -> str:
    return f"to unpickle {arguments[0]}.{arguments[1]}"


def _show(address: object) -> str:
    if isinstance(address, tuple) and len(address) > 1:
        return f"{_plain(address[0])[:255]} port {address[1]}"
    return f"the socket {str(address)[:255]!r}"


JUDGES: dict[str, Callable[[Walls, tuple[Any, ...]], str | None]] = {
    "socket.connect": _judge_connect,
    "socket.sendto": _judge_send,
    "socket.sendmsg": _judge_send,
    "socket.bind": _judge_bind,
    "socket.getaddrinfo": _judge_lookup,
    "socket.gethostbyname": _judge_lookup,
    "socket.gethostbyaddr": _judge_lookup,
    "subprocess.Popen": _judge_child,
    "os.system": _judge_program,
    "os.exec": _judge_program,
    "os.posix_spawn": _judge_program,
    "os.fork": _judge_program,
    "os.forkpty": _judge_program,
    "pickle.find_class": _judge_unpickling,
}
"""What says of an event whether it is refused, and then how it is called. Loading machine code (ctypes) is not among
them: torch does so when it is imported, and whoever can do it is not held by a hook anyway."""
