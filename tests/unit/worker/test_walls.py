"""What a process that works may not reach, start or unpickle. A hook is never taken off, so each test has its process."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.database import Database, open_engine, read_only
from app.models.work import Work
from app.serve import prepare
from tests.support import add_job, settings_in
from worker.walls import CHILD, JUDGES, Walls, list_endpoints

Attempt = Callable[..., list[dict[str, Any]]]

PROGRAM = """
import json, logging, sys
from app.errors import JobFailure
from app.settings import load_settings
from worker.walls import check_walls, raise_walls
logging.basicConfig(stream=sys.stderr, format="%(message)s")
raise_walls(load_settings({}, **json.loads(sys.argv[1])))
for program in sys.argv[2:]:
    found = {}
    try:
        exec(program, {})
        found["done"] = True
    except JobFailure as error:
        found |= {"code": error.code, "message": error.message}
    except Exception as error:
        found["other"] = repr(error)
    try:
        check_walls()
    except JobFailure as error:
        found["later"] = error.message
    print(json.dumps(found), flush=True)
"""


class Listener:
    """A port of this machine, and who came there."""

    def __init__(self) -> None:
        self.callers = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                if connection.recv(4) == b"stop":
                    return
                self.callers += 1

    def close(self) -> None:
        """Stop listening."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"stop")
        self._thread.join()
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Somebody who listens."""
    found = Listener()
    yield found
    found.close()


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    """Run programs in one process behind the walls of these settings, and return what came of each."""

    def run(*programs: str, **settings: Any) -> list[dict[str, Any]]:
        values = json.dumps({"home": str(tmp_path), **settings})
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, values, *programs], capture_output=True, text=True, check=True
        )
        return [{"log": done.stderr, **json.loads(line)} for line in done.stdout.splitlines()]

    return run


def connect(host: str, port: int) -> str:
    """Return a program that connects and sends something."""
    return f"import socket; socket.create_connection(({host!r}, {port})).sendall(b'hello')"


def test_a_connection_to_nobody_that_the_settings_name_is_refused_and_told(
    attempt: Attempt, listener: Listener
) -> None:
    program = (
        "import asyncio, httpx\n"
        "async def ask():\n"
        "    async with httpx.AsyncClient(trust_env=False) as client:\n"
        f"        await client.get('http://127.0.0.1:{listener.port}/')\n"
        "asyncio.run(ask())"
    )
    by_address, by_name, by_asyncio = attempt(
        connect("127.0.0.1", listener.port), connect("localhost", listener.port), program
    )
    where = f"127.0.0.1 port {listener.port}"
    assert by_address["code"] == by_name["code"] == "not_allowed"
    assert where in by_address["message"]
    assert f"refused to connect to {where}" in by_address["log"]
    assert "localhost" in by_name["message"]
    # Its library packs the error into one of its own, and so it comes up behind it.
    assert "code" not in by_asyncio
    assert "done" not in by_asyncio
    assert where in by_asyncio["later"]
    assert listener.callers == 0


def test_a_refusal_that_a_library_swallows_comes_up_later(attempt: Attempt, listener: Listener) -> None:
    (found,) = attempt(f"try:\n    {connect('127.0.0.1', listener.port)}\nexcept Exception: pass")
    assert found["done"]
    assert f"127.0.0.1 port {listener.port}" in found["later"]


def test_a_connection_to_who_is_named_is_made(attempt: Attempt, listener: Listener) -> None:
    named = {"judge_url": f"http://localhost:{listener.port}/v1", "judge_model": "judge"}
    by_name, elsewhere = attempt(
        connect("localhost", listener.port), connect("localhost", listener.port + 1), **named
    )
    assert by_name.get("done"), by_name
    assert elsewhere["code"] == "not_allowed"
    assert listener.callers == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::ffff:127.0.0.1", "0:0:0:0:0:ffff:7f00:1"])
@pytest.mark.parametrize("of", ["judge_url", "mlflow_tracking_uri", "broker_url"])
def test_an_address_has_many_spellings(tmp_path: Path, host: str, of: str) -> None:
    scheme = "redis" if of == "broker_url" else "http"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:81/0"
    walls = Walls(
        settings_in(tmp_path, **{of: url}, **({"judge_model": "judge"} if of == "judge_url" else {}))
    )
    for address in (("127.0.0.1", 81), ("::ffff:127.0.0.1", 81, 0, 0), ("::FFFF:7f00:1%lo", 81, 0, 0)):
        assert walls.allows_address(address), address
    for address in (
        ("127.0.0.1", 80),
        ("127.0.0.2", 81),
        ("::1", 81, 0, 0),
        "/run/socket",
        b"x",
        None,
        ("x",),
    ):
        assert not walls.allows_address(address), address


def test_what_a_named_host_resolves_to_is_allowed_at_its_port_alone(tmp_path: Path) -> None:
    walls = Walls(settings_in(tmp_path, judge_url="http://localhost:81/v1", judge_model="judge"))
    assert not walls.allows_address(("127.0.0.1", 81))
    walls.getaddrinfo("localhost", 80, socket.AF_INET, socket.SOCK_STREAM)
    assert not walls.allows_address(("127.0.0.1", 80))
    walls.getaddrinfo("localhost", 81, socket.AF_INET, socket.SOCK_STREAM)
    assert walls.allows_address(("127.0.0.1", 81))
    assert walls.allows_host("LOCALHOST.")
    assert not walls.allows_host("localhost.attacker.example")


REFUSED = [
    ("import socket; socket.getaddrinfo('x.attacker.example', 80)", "x.attacker.example"),
    ("import socket; socket.gethostbyname('attacker.example')", "attacker.example"),
    ("import socket; socket.create_connection(('169.254.169.254', 80), 1)", "169.254.169.254 port 80"),
    (
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
        "192.0.2.1 port 53",
    ),
    (
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendmsg([b'x'], [], 0, ('192.0.2.1', 53))",
        "192.0.2.1 port 53",
    ),
    ("import socket; socket.socket(socket.AF_UNIX).connect('/run/docker.sock')", "/run/docker.sock"),
    ("import socket; socket.create_server(('127.0.0.1', 9999))", "listen at 127.0.0.1 port 9999"),
    ("import socket; socket.create_server(('', 0))", "listen at"),
    ("import http.client; http.client.HTTPConnection('192.0.2.1').request('GET', '/')", "192.0.2.1 port 80"),
    ("import os; os.system('touch CANARY')", "start another program"),
    ("import subprocess; subprocess.run(['touch', 'CANARY'])", "start the program 'touch'"),
    ("import subprocess; subprocess.run('touch CANARY', shell=True)", "start the program"),
    (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'open(\"CANARY\", \"w\")'])",
        "the program",
    ),
    ("import os; os.posix_spawn('/usr/bin/touch', ['touch', 'CANARY'], {})", "start another program"),
    ("import os; os.execv('/usr/bin/touch', ['touch', 'CANARY'])", "start another program"),
    ("import os\nif os.fork() == 0: open('CANARY', 'w'); os._exit(0)", "start another program"),
    ("import pickle; pickle.loads(b'cos\\nsystem\\n(S\"touch CANARY\"\\ntR.')", "unpickle"),
    ("import pickle; pickle._loads(b'cos\\nsystem\\n(S\"touch CANARY\"\\ntR.')", "unpickle"),
    (
        "import io, torch\n"
        "buffer = io.BytesIO()\n"
        "torch.save(torch.ones(2), buffer)\n"
        "torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)",
        "unpickle torch",
    ),
    (
        "import io, numpy\n"
        "buffer = io.BytesIO()\n"
        "numpy.save(buffer, numpy.array([ValueError()], dtype=object))\n"
        "numpy.load(io.BytesIO(buffer.getvalue()), allow_pickle=True)",
        "unpickle",
    ),
]


def test_what_no_work_does_is_refused(attempt: Attempt, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    programs = [program.replace("CANARY", str(canary)) for program, _ in REFUSED]
    for (program, what), found in zip(REFUSED, attempt(*programs), strict=True):
        assert found.get("code") == "not_allowed", (program, found)
        assert what in found["message"], program
        assert what in found["log"], program
    assert not canary.exists()


def test_what_work_needs_is_left_alone(attempt: Attempt) -> None:
    """The one child that work may start, and all that its modules do when they are imported."""
    modules = "trainer, evaluator, reporter, critic_fitter, exporter, file_checker"
    child, imports = attempt(
        f"import subprocess; subprocess.run({list(CHILD)!r}, stdin=subprocess.DEVNULL, check=True, stdout=-3)",
        f"from worker import {modules}\nfrom worker.training.models import environment; environment()",
    )
    assert child.get("done"), child
    assert imports.get("done"), imports
    assert "later" not in imports


WORK = """
import asyncio, sys
import httpx
from app.domain.job import WorkKind
from worker import process

async def phone_home(context):
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get("http://192.0.2.1/")

process.KINDS[WorkKind.TRAIN] = lambda context: asyncio.run(phone_home(context))
sys.exit(process.main())
"""


def test_work_that_hits_a_wall_fails_and_says_so(tmp_path: Path) -> None:
    """From the claim to the job's error: what its library made of the refusal does not matter."""
    settings = settings_in(tmp_path / "home")
    prepare(settings)
    database = Database(open_engine(settings.database_url), lambda _: None)
    job_id = add_job(database, tmp_path, safety={"method": "none"})
    command = [sys.executable, "-c", WORK, job_id]
    done = subprocess.run(
        command, env=settings.child_environment(), capture_output=True, text=True, check=False
    )
    with read_only(database) as session:
        work = session.get_one(Work, job_id)
    database.engine.dispose()
    assert "refused to connect to 192.0.2.1 port 80" in done.stderr
    assert (done.returncode, work.attempt) == (0, 1)
    assert work.error is not None
    assert work.error["code"] == "not_allowed"
    assert "192.0.2.1 port 80" in work.error["message"]


def test_endpoints_are_those_of_the_settings(tmp_path: Path) -> None:
    settings = settings_in(
        tmp_path,
        database_url="postgresql://user:secret@DB.internal/tether",
        broker_url="rediss://:secret@[2001:DB8::1]/0",
        judge_url="https://judge.internal/v1",
        judge_model="judge",
        mlflow_tracking_uri="http://mlflow.internal:5000",
    )
    assert set(list_endpoints(settings)) == {
        ("db.internal", 5432),
        ("2001:db8::1", 6379),
        ("judge.internal", 443),
        ("mlflow.internal", 5000),
    }
    assert not set(list_endpoints(settings_in(tmp_path)))


def test_events_have_the_names_that_python_gives_them() -> None:
    """A name that no Python raises would protect from nothing; each is provoked above or stands here with its reason."""
    provoked = {
        *("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind", "socket.getaddrinfo"),
        *("socket.gethostbyname", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"),
        "pickle.find_class",
    }
    # The same C code as gethostbyname and fork raises these.
    assert set(JUDGES) - provoked == {"socket.gethostbyaddr", "os.forkpty"}
