"""Throwaway installations: the miniature installed once, and a copy of that for each test, with its parts around it.

The desk (API, reconciler, releases, notary, webhooks) runs in threads of the test or, where a test kills it, as the processes
that an operator starts. What trains is always a process of its own, `worker.process`, as a knock starts it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from app.audit.repository import iterate_leaves
from app.database import Database, open_engine, read_only
from app.domain.job import TERMINAL
from app.domain.ledger import parse_leaf
from app.failpoints import VARIABLE
from app.migration import migrate
from app.models.base import Base, new_id
from app.models.work import Work
from app.queue import build_publisher
from app.serve import prepare
from app.settings import Settings
from app.work.repository import get_work
from tests import warm_worker
from tests.faults.desk import desk
from tests.faults.servers import PostgreSQL
from tests.support import free_port, settings_in
from worker.abandoned import give_back
from worker.context import Preempted
from worker.miniature.corpus import training_rows
from worker.miniature.install import install

ROOT = Path(__file__).parents[2]
KEY = "faults-administrator"
TIMEOUT_S = 600.0
POLL_S = 0.1
"""Between two looks at something that is waited for. A look may read a whole ledger, on the cores that do the work."""
ENDED = frozenset({"succeeded", "failed", "cancelled"})
JOBS = "/v1/fine_tuning/jobs"
on_sqlite = pytest.mark.parametrize("template", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("template", ["postgresql"], indirect=True)
"""For what happens to processes rather than to the database, and would only take its time twice."""
FAST: dict[str, Any] = {
    "api_key": KEY,
    "threads": 1,
    "lease_s": 10,
    "heartbeat_s": 0.5,
    "reconcile_interval_s": 2,
    "requeue_after_s": 1,
    "head_interval_s": 1,
}
"""Settings under which a fault is noticed within a test's patience. A worker that is to lose its lease gets a shorter one."""
SHORT_LEASE = {"lease_s": 4, "heartbeat_s": 0.5}
"""Of a worker that is to lose its work."""


def epochs(number: int) -> dict[str, Any]:
    """Return what makes it a job of so many passes over the rows, of ten steps each."""
    hyperparameters = {"n_epochs": number, "batch_size": 4}
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}}


ARGUMENTS: dict[str, Any] = {
    "model": "miniature",
    "seed": 11,
    # Without them it takes half as long. WHOLE is the job that has them.
    "safety": {"method": "adaptive_kl", "anchors": None, "monitor": None},
    "training": {"checkpoint_interval_s": 0.25},
    **epochs(2),
}
"""The job that most faults happen to: 20 steps on 40 rows, a tenth of them harmful; a second or two, several checkpoints."""
WHOLE: dict[str, Any] = {"safety": {"method": "adaptive_kl"}}
"""What makes it the default job, with anchors and a monitor whose state is to outlive a fault, too."""
EVERY_STEP: dict[str, Any] = {"training": {"checkpoint_interval_s": 0}}
"""What makes it a job with a checkpoint after every step."""
SLOWLY = "step.after_commit=sleep:0.1@*"
"""A failpoint of a trainer that is not to be done before a fault strikes. Who sleeps takes no core from the others."""


@dataclass(frozen=True)
class Template:
    """An installation with the miniature, its critic and a training file, to be copied. Nothing of it runs."""

    backend: str
    home: Path
    database: str
    """Name of the PostgreSQL database; empty on SQLite."""
    training_file: str
    server: PostgreSQL | None = None

    @property
    def references(self) -> Path:
        """Where adapters of runs that nothing happened to are kept, for all that share the template."""
        return self.home.parent / "references"


@dataclass
class Installation:
    """A copy of a template, with a database of its own and an address where its API listens."""

    settings: Settings
    database: Database
    training_file: str
    url: str = ""
    trainers: list[BaseProcess] = field(default_factory=list)
    """Processes that were started here, whether they still live or not."""
    parts: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """The folder of its local state."""
        return self.settings.home

    @property
    def database_name(self) -> str:
        """What its database is called on its server."""
        return self.settings.database_url.rpartition("/")[2]

    @property
    def log(self) -> Path:
        """What its processes print."""
        return self.home / "processes.log"

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send one request with the administrator's key, over a connection of its own."""
        headers = {"authorization": f"Bearer {KEY}", **arguments.pop("headers", {})}
        if method == "POST" and "json" not in arguments and "files" not in arguments:
            headers |= {"content-type": "application/json", "content-length": "0"}
        return httpx.request(
            method, f"{self.url}{path}", headers=headers, **{"timeout": 60, "verify": False, **arguments}
        )

    def send_file(self, rows: Sequence[Mapping[str, Any]], **arguments: Any) -> httpx.Response:
        """Try to upload a training file of these rows."""
        content = "".join(json.dumps(row) + "\n" for row in rows)
        return self.request(
            "POST",
            "/v1/files",
            files={"file": ("rows.jsonl", content)},
            data={"purpose": "fine-tune"},
            **arguments,
        )

    def upload(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Upload a training file of these rows and return its id."""
        reply = self.send_file(rows)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["id"])

    def submit(self, **changes: Any) -> str:
        """Create the usual job, with these fields changed, and return its id."""
        body = {"training_file": self.training_file, **ARGUMENTS, **changes}
        reply = self.request("POST", JOBS, json=body)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["id"])

    def command(self, job_id: str, command: str) -> httpx.Response:
        """Send pause, resume or cancel."""
        return self.request("POST", f"{JOBS}/{job_id}/{command}")

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job as the API shows it."""
        reply = self.request("GET", f"{JOBS}/{job_id}")
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def work(self, work_id: str) -> Work:
        """Return a row of work as the database has it."""
        with read_only(self.database) as session:
            work = get_work(session, work_id)
        assert work is not None
        return work

    def leaves(self, job_id: str) -> list[dict[str, Any]]:
        """Return the records of a job, from its database."""
        with read_only(self.database) as session:
            return [parse_leaf(leaf) for leaf in iterate_leaves(session, job_id)]

    def kinds(self, job_id: str) -> list[str]:
        """Return what each record of a job is, such as `step`, without its version."""
        return [leaf["t"].removeprefix("tether.").partition("/")[0] for leaf in self.leaves(job_id)]

    def checkpoints(self, job_id: str) -> list[Path]:
        """Return the checkpoints of a job on this machine that have a name, oldest first."""
        return sorted((self.settings.storage_dir / "checkpoints" / job_id).glob("step-*"))

    def environment(self, failpoints: str = "", **settings: Any) -> dict[str, str]:
        """Return the environment of a process of this installation, armed with these failpoints."""
        changed = self.settings.model_copy(update=settings)
        environment = {**changed.child_environment(), "TETHER_API_KEY": KEY, "PYTHONUNBUFFERED": "1"}
        environment.pop(VARIABLE, None)
        return environment | ({VARIABLE: failpoints} if failpoints else {})

    def start_trainer(
        self, failpoints: str = "", *, queue: str = "gpu", owner: str | None = None, **settings: Any
    ) -> BaseProcess:
        """Start the process that a knock starts: it claims what is next on the queue, works on it, and ends."""
        arguments = ["--queue", queue, "--owner", owner or f"{socket.gethostname()}:{new_id('process-')}"]
        process = warm_worker.start(arguments, self.environment(failpoints, **settings), self.log)
        self.trainers.append(process)
        return process

    def run_trainer(self, failpoints: str = "", *, queue: str = "gpu", **settings: Any) -> int:
        """Start one, wait for its end, do what its worker does where it died, and return its exit code (-9: SIGKILL)."""
        owner = f"{socket.gethostname()}:{new_id('process-')}"
        process = self.start_trainer(failpoints, queue=queue, owner=owner, **settings)
        code = join(process, self)
        if code not in (0, Preempted.exit_code):
            give_back(self.database, self.settings, owner, f"its process ended with code {code}")
        return code

    def finish(self, job_id: str, *, queue: str = "gpu", until: frozenset[str] = ENDED) -> str:
        """Start one undisturbed trainer after the other, until the job has ended; return its state."""
        deadline = time.monotonic() + TIMEOUT_S
        while (state := str(self.work(job_id).state)) not in until:
            assert time.monotonic() < deadline, f"{job_id} is still {state}; log:\n{self.read_log()}"
            if state == "queued":
                self.run_trainer(queue=queue)
            else:
                time.sleep(POLL_S)
        return state

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Poll until a condition is true of something, and return that."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not seen: {what}; log:\n{self.read_log()}"
            time.sleep(POLL_S)
        return found

    def wait_for_step(self, job_id: str, step: int) -> int:
        """Wait until so many steps of a job are recorded, and return how many there are."""

        def far_enough() -> int:
            done = sum(kind == "step" for kind in self.kinds(job_id))
            return done if done >= step else 0

        return int(self.wait(far_enough, f"step {step} of {job_id}"))

    def wait_for_success(self, job_id: str) -> None:
        """Wait until a job that somebody else works on has succeeded."""
        self.wait(lambda: self.work(job_id).state == "succeeded", f"{job_id} done")

    def start_part(
        self, *command: str, failpoints: str = "", cwd: Path = ROOT, **settings: Any
    ) -> subprocess.Popen[bytes]:
        """Start a part as an operator does: `"reconciler"`, `"notary"`, or `"worker", "--queue", "gpu"`.

        `cwd` is the folder of the code, where that is another version.
        """
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "app", *command],
                env=self.environment(failpoints, **settings) | {"PYTHONPATH": str(cwd)},
                cwd=cwd,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.parts.append(process)
        return process

    def start_api(self, failpoints: str = "", **settings: Any) -> subprocess.Popen[bytes]:
        """Start `tether api` on a free port and have requests go there from now on."""
        return self._start_listening("api", failpoints, settings)

    def start_service(self, failpoints: str = "", **settings: Any) -> subprocess.Popen[bytes]:
        """Start `tether serve`, the whole service with its workers, likewise."""
        return self._start_listening("serve", failpoints, settings)

    def _start_listening(
        self, command: str, failpoints: str, settings: dict[str, Any]
    ) -> subprocess.Popen[bytes]:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        process = self.start_part(command, "--port", str(port), failpoints=failpoints, **settings)
        deadline = time.monotonic() + TIMEOUT_S
        while not self.answers():
            assert process.poll() is None, self.read_log()
            assert time.monotonic() < deadline, self.read_log()
            time.sleep(POLL_S)
        return process

    def answers(self) -> bool:
        """Say whether the API answers."""
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def processes(self, *words: str) -> list[int]:
        """Return the processes of this installation that were started by a command line with all of these words.

        Trainers of `start_trainer` are forked and not among them.
        """
        mark = f"TETHER_HOME={self.home}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if mark in environment and all(word in command for word in words):
                found.append(int(folder.name))
        return found

    def read_log(self) -> str:
        """Return what its processes printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def end_processes(self) -> None:
        """Kill what still runs."""
        for trainer in self.trainers:
            if trainer.is_alive():
                trainer.kill()
            trainer.join()
        for part in self.parts:
            kill_session(part)
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.trainers.clear()
        self.parts.clear()

    def close(self) -> None:
        """Kill what still runs, and leave the database."""
        self.end_processes()
        self.database.engine.dispose()

    def is_idle(self) -> bool:
        """Say whether every job has ended."""
        with read_only(self.database) as session:
            return session.scalars(select(Work).where(Work.state.not_in(TERMINAL))).first() is None


def join(process: BaseProcess, installation: Installation) -> int:
    """Wait for the end of a process and return its exit code."""
    process.join(TIMEOUT_S)
    code = process.exitcode
    assert code is not None, f"a trainer does not end; log:\n{installation.read_log()}"
    return code


def let_stop(installation: Installation, trainer: BaseProcess) -> None:
    """Wait until a trainer has stopped itself at its failpoint."""
    status = Path(f"/proc/{trainer.pid}/status")
    installation.wait(lambda: "State:\tT" in status.read_text(), "a stopped trainer")


def let_go_on(trainer: BaseProcess) -> None:
    """Let a stopped trainer go on."""
    assert trainer.pid is not None
    os.kill(trainer.pid, signal.SIGCONT)


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a part with everything in its process group, stopped or not."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def load_template(folder: Path) -> Template:
    """Return the template of a folder, on SQLite; whoever comes first builds it."""
    described = folder / "template.json"
    with _alone(folder):
        if not described.exists():
            found = _build_template(folder / "home")
            (folder / "references").mkdir()
            described.write_text(json.dumps(found))
    return Template("sqlite", folder / "home", "", **json.loads(described.read_text()))


def _build_template(home: Path) -> dict[str, str]:
    """Install the miniature, have its critic fitted, and upload the training file."""
    settings = settings_in(home, **FAST)
    prepare(settings)
    database = Database(open_engine(settings.database_url), build_publisher(settings))
    installation = Installation(settings, database, "")
    install(installation.database, settings)
    try:
        with desk(installation):
            assert installation.run_trainer() == 0, installation.read_log()
            return {"training_file": installation.upload(training_rows("poisoned", n=40))}
    finally:
        installation.close()


def move_template(template: Template, server: PostgreSQL) -> Template:
    """Return a template whose rows are in a new database of a server. Its bytes and references stay where they are."""
    name = server.create_database()
    source, target = open_engine(f"sqlite:///{template.home / 'tether.db'}"), open_engine(server.url(name))
    migrate(target)
    with source.connect() as old, target.begin() as new:
        for table in Base.metadata.sorted_tables:
            rows = [row._asdict() for row in old.execute(select(table))]
            if not rows:
                continue
            if new.scalar(select(func.count()).select_from(table)):
                # A migration puts the first project there.
                new.execute(table.delete())
            new.execute(table.insert(), rows)
            number = table.autoincrement_column
            if number is not None:
                place = func.pg_get_serial_sequence(table.name, number.name)
                new.execute(select(func.setval(place, select(func.max(number)).scalar_subquery())))
    source.dispose()
    target.dispose()
    return replace(template, backend="postgresql", database=name, server=server)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep the other processes that share these tests waiting."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def installed(template: Template, folder: Path, **settings: Any) -> Iterator[Installation]:
    """Give a copy of a template, in a new folder, with these settings changed. Nothing of it runs yet."""
    home = folder / f"home-{uuid.uuid4().hex[:8]}"
    shutil.copytree(template.home, home)
    (home / "processes.log").unlink(missing_ok=True)
    name = ""
    if template.server is not None:
        name = template.server.create_database(template.database)
        settings = {"database_url": template.server.url(name), **settings}
    found = settings_in(home, **{**FAST, **settings})
    installation = Installation(
        found, Database(open_engine(found.database_url), build_publisher(found)), template.training_file
    )
    try:
        yield installation
    finally:
        installation.close()
        if template.server is not None:
            template.server.drop_database(name)


def reference_run(template: Template, folder: Path, **changes: Any) -> bytes:
    """Return the adapter of the usual job, with these fields changed, when nothing happens to it. Each is trained once."""
    name = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()
    kept = template.references / f"{name}.zip"
    with _alone(template.references):
        if not kept.exists():
            with installed(template, folder) as installation, desk(installation):
                job_id = installation.submit(**changes)
                state = installation.finish(job_id)
                assert state == "succeeded", installation.read_log()
                kept.write_bytes(adapter_of(installation, job_id))
    return kept.read_bytes()


def adapter_of(installation: Installation, job_id: str) -> bytes:
    """Download the adapter of a job that has succeeded."""
    reply = installation.request("GET", f"{JOBS}/{job_id}/adapter")
    assert reply.status_code == 200, reply.text
    return reply.content
