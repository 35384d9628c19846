"""Running the parts: the API alone, or everything that one machine needs."""

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from app import storage
from app.bounded_http import BoundedHttp
from app.database import Database, open_engine, unit_of_work
from app.domain.safety_policy import load_policy
from app.errors import ConfigurationError
from app.jobs.waker import Waker
from app.keys.service import ensure_admin_key
from app.main import create_app
from app.migration import migrate
from app.notary.anchor import run_anchor
from app.notary.repository import START, note_change
from app.notary.service import run_notary
from app.queue import QUEUES, build_publisher
from app.reconciler import run_reconciler
from app.settings import Settings, make_home
from app.webhooks.delivery import run_deliveries
from app.work.release import run_releases

log = logging.getLogger(__name__)

LOCK = "serve.lock"
"""In the folder of local state: who serves from it."""
STOP_TIMEOUT_S = 30.0
RESTART_PAUSE_S = 1.0
UNREAD_TIMEOUT_S = 60.0
"""A connection whose other end takes nothing of what was sent for this long is dropped."""


def prepare(settings: Settings) -> str | None:
    """Make the folders, bring the schema up to date, make sure of a key; return a key that was made just now."""
    make_home(settings)
    storage.prepare(settings.storage)
    engine = open_engine(settings.database_url)
    try:
        migrate(engine)
        with unit_of_work(Database(engine, build_publisher(settings))) as session:
            _, policy = load_policy(settings.policy_file)
            note_change(session, "policy_file", "policy_file.changed", actor=START, sha256=policy)
            return ensure_admin_key(
                session, settings.api_key.get_secret_value() if settings.api_key else None
            )
    finally:
        engine.dispose()


def serve(settings: Settings, host: str, port: int) -> None:
    """Run API, reconciler, webhooks and notary here and a worker per queue as children, until SIGTERM or Ctrl-C."""
    make_home(settings)
    with alone_in(settings.home):
        _serve(settings, host, port)


@contextmanager
def alone_in(home: Path) -> Iterator[None]:
    """Keep a second service away from a folder. Raises ConfigurationError in that one; a process that dies lets go.

    Two of them would start two workers a queue, and nobody means a machine to train two jobs at once.
    """
    with (home / LOCK).open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            who = file.read().strip() or "unknown"
            raise ConfigurationError(
                f"another tether serve (process {who}) runs on the folder {home}; stop it, or choose another --home"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _serve(settings: Settings, host: str, port: int) -> None:
    # What can go wrong with the port and the policy goes wrong before a key is made that nobody would see.
    listening = listen(host, port)
    load_policy(settings.policy_file)
    made_key = prepare(settings)
    server = _build_server(settings, host, port)
    address = f"http://{host}:{listening.getsockname()[1]}"
    print(f"Tether listens on {address}/v1 and keeps its data in {settings.home}", flush=True)  # noqa: T201
    if made_key is not None:
        print(f"API key of the administrator, shown only now: {made_key}", flush=True)  # noqa: T201
    stop = threading.Event()
    database = Database(open_engine(settings.database_url), build_publisher(settings))
    threads = [
        threading.Thread(target=run_reconciler, args=(database, settings, stop), name="reconciler"),
        threading.Thread(target=run_deliveries, args=(database, settings, stop), name="webhooks"),
        threading.Thread(target=run_releases, args=(database, stop), name="releases"),
        threading.Thread(target=run_notary, args=(database, settings, stop), name="notary"),
        threading.Thread(target=run_anchor, args=(database, settings, stop), name="anchor"),
        threading.Thread(target=supervise_workers, args=(settings, stop), name="supervisor"),
    ]
    for thread in threads:
        thread.start()
    try:
        server.run(sockets=[listening])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        database.engine.dispose()


def run_api(settings: Settings, host: str, port: int) -> None:
    """Run the API alone until SIGTERM or Ctrl-C."""
    _build_server(settings, host, port).run(sockets=[listen(host, port)])


class Server(uvicorn.Server):
    """Uvicorn that tells streams and long polls when it stops, which they would keep from ending."""

    def __init__(self, app: FastAPI, **options: Any) -> None:
        super().__init__(uvicorn.Config(app, **options))
        self._waker: Waker = app.state.waker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what waits, then stop as usual."""
        self._waker.close()
        await super().shutdown(sockets)


def _build_server(settings: Settings, host: str, port: int) -> Server:
    server = Server(
        create_app(settings),
        host=host,
        port=port,
        http=BoundedHttp,
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=5,
    )

    def leave(*_: object) -> None:
        server.should_exit = True

    # Uvicorn has handlers of its own while it runs. These serve before that, and afterwards, when it raises the
    # signal once more though workers are still to be stopped.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    return server


def supervise_workers(settings: Settings, stop: threading.Event) -> None:
    """Keep a worker per queue alive until told to stop, then stop them and wait for them."""
    environment = settings.child_environment()
    install_miniature(environment)
    running: dict[str, subprocess.Popen[bytes]] = {}
    while not stop.wait(RESTART_PAUSE_S if running else 0):
        for queue in QUEUES:
            worker = running.get(queue)
            if worker is not None and worker.poll() is None:
                continue
            if worker is not None:
                log.warning(
                    "the worker of the queue %s ended with code %d; starting it again",
                    queue,
                    worker.returncode,
                )
            running[queue] = start_worker(queue, environment)
    for worker in running.values():
        worker.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for worker in running.values():
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def start_worker(queue: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the worker of a queue, in a session of its own so that Ctrl-C reaches only us."""
    command = [sys.executable, "-m", "worker.celery_app", "--queue", queue, "--parent", str(os.getpid())]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def install_miniature(environment: dict[str, str]) -> None:
    """Register the miniature and have its critic fitted, where that was not done yet."""
    done = subprocess.run([sys.executable, "-m", "worker.miniature.install"], env=environment, check=False)
    if done.returncode != 0:
        log.error("the miniature could not be registered; see the lines above")


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket. Raises ConfigurationError where there is none to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Asyncio sends at once only what it knows to be TCP. Else the body of a reply waits until its head is acknowledged,
    # which takes most clients 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Connections inherit it. Nobody else would end one: what is unsent is kept as long as the other end lives.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_TIMEOUT_S * 1000))
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
        ) from error
    return listening
