"""A PostgreSQL and a Redis of the tests' own, to be stopped, killed and started again. Skips where one is not installed."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psycopg
import pytest
from psycopg import sql
from redis import Redis as RedisClient
from redis.exceptions import RedisError

from tests.support import free_port

START_TIMEOUT_S = 60.0
StopMode = Literal["smart", "fast", "immediate"]


class PostgreSQL:
    """A server with a data folder of its own, on a port that stays the same when it is started again."""

    def __init__(self, folder: Path, binaries: Path, primary: str | None = None) -> None:
        """Make the data folder: a new one, or that of a replica of the server at this URL, which commits without waiting for it."""
        self.folder = folder
        self.port = free_port()
        self.binaries = binaries
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        data = str(folder / "data")
        if primary is None:
            self._run("initdb", "-D", data, "-U", "tether", "--auth=trust", "--no-sync")
        else:
            self._run("pg_basebackup", "-D", data, "-d", primary, "-R", "-c", "fast", "--no-sync")

    def url(self, database: str = "postgres", *, port: int | None = None) -> str:
        """Return the URL of a database, by way of a proxy where its port is given."""
        return f"postgresql://tether@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", log, "-o", options, "start")

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop it; `immediate` is what a crash is: what was not committed is gone, and its log is replayed at the start."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", mode, "stop")

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start it."""
        self.stop(mode)
        self.start()

    def take_over(self, port: int) -> None:
        """Promote a replica, with what it has heard so far, and have it answer where its primary did, which is gone."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "promote")
        self.stop()
        self.port = port
        self.start()

    def create_database(self, template: str | None = None) -> str:
        """Create a database, empty or as a copy of one that nobody is connected to, and return its name."""
        name = f"tether_{uuid.uuid4().hex}"
        with psycopg.connect(self.url(), autocommit=True) as administrator:
            administrator.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                    sql.Identifier(name), sql.Identifier(template or "template0")
                )
            )
            # A process that a test stops may be in the middle of a heartbeat, and then keeps its job's row from everybody.
            # Two minutes, which is the default, are longer than a client waits.
            administrator.execute(
                sql.SQL("ALTER DATABASE {} SET idle_in_transaction_session_timeout = '10s'").format(
                    sql.Identifier(name)
                )
            )
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        with psycopg.connect(self.url(), autocommit=True) as administrator:
            administrator.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def _run(self, program: str, *arguments: str) -> None:
        printed = self.folder / f"{program}.out"
        # A file, because the server keeps open what pg_ctl was given, and a pipe would never end.
        with printed.open("ab") as out:
            done = subprocess.run(
                [self.binaries / program, *arguments],
                check=False,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=START_TIMEOUT_S,
                user=self._user,
                group=self._user,
            )
        assert done.returncode == 0, printed.read_text(errors="replace")


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Give a running server, and remove it after."""
    found = shutil.which("pg_ctl")
    candidates = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        *([Path(found).parent] if found else []),
    ]
    binaries = next((each for each in candidates if (each / "initdb").exists()), None)
    if binaries is None:
        pytest.skip("PostgreSQL's initdb and pg_ctl are not installed")
    if os.getuid() == 0 and "postgres" not in {each.pw_name for each in pwd.getpwall()}:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    with _running(binaries) as server:
        yield server


@contextmanager
def replica_of(primary: PostgreSQL, *, port: int) -> Iterator[PostgreSQL]:
    """Give a running replica, which hears of its primary by way of a proxy on this port, and remove it after."""
    with _running(primary.binaries, primary.url(port=port)) as server:
        yield server


@contextmanager
def _running(binaries: Path, primary: str | None = None) -> Iterator[PostgreSQL]:
    # Not below pytest's folders, which no other user may enter.
    folder = Path(tempfile.mkdtemp(prefix="tether-postgresql-"))
    try:
        server = PostgreSQL(folder, binaries, primary)
        server.start()
        try:
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Redis:
    """A server that keeps nothing, on a port that stays the same when it is started again."""

    def __init__(self, program: str, folder: Path) -> None:
        self.port = free_port()
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, *, port: int | None = None) -> str:
        """Return its URL, by way of a proxy where its port is given."""
        return f"redis://127.0.0.1:{port or self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [self._program, "--port", str(self.port), "--bind", "127.0.0.1"]
        self._process = subprocess.Popen(
            [*command, "--save", "", "--appendonly", "no", "--dir", str(self._folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                with RedisClient(port=self.port) as client:
                    client.ping()
                return
            except RedisError:
                assert self._process.poll() is None, "redis-server ended at its start"
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.02)

    def stop(self) -> None:
        """Kill it: whatever it held is gone."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill and start it."""
        self.stop()
        self.start()

    def flush(self) -> None:
        """Forget every message: FLUSHALL."""
        with RedisClient(port=self.port) as client:
            client.flushall()


@contextmanager
def redis(folder: Path) -> Iterator[Redis]:
    """Give a running server, and kill it after."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip("neither redis-server nor valkey-server is installed")
    server = Redis(program, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
