"""What several tests need: databases of their own, a model folder without weights worth the name, settings."""

import json
import shutil
import socket
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from sqlalchemy import make_url
from sqlalchemy.orm import Session

from app.base_models.service import register_base_model
from app.database import Database, open_engine, unit_of_work
from app.migration import migrate
from app.models.base import new_id, utc_now
from app.models.base_model import BaseModel, Critic
from app.seat_belts import unfasten
from app.settings import Settings, load_settings


@contextmanager
def database_on(backend: str, folder: Path, server: str | None) -> Iterator[str]:
    """Give the URL of a new, empty database: a file in `folder`, or a schema on the server, dropped after."""
    if backend == "sqlite":
        yield f"sqlite:///{folder / 'tether.db'}"
        return
    assert server is not None
    name = f"tether_test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as administrator:
        administrator.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        try:
            yield f"{server}{'&' if '?' in server else '?'}options=-csearch_path%3D{name}"
        finally:
            administrator.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


class Migrated:
    """Databases at the newest revision. Each kind is brought there once, and copied from then on."""

    def __init__(self, folder: Path, server: str | None) -> None:
        self._file = folder / "migrated.db"
        self._server = server
        self._template = ""

    @contextmanager
    def on(self, backend: str, folder: Path) -> Iterator[str]:
        """Give the URL of a new one: a file in `folder`, or a database on the server, dropped after."""
        if backend == "sqlite":
            if not self._file.exists():
                _bring_up(f"sqlite:///{self._file}")
            yield f"sqlite:///{shutil.copy(self._file, folder / 'tether.db')}"
            return
        if not self._template:
            self._template = self._create()
            _bring_up(self._url(self._template))
        name = self._create(self._template)
        try:
            yield self._url(name)
        finally:
            self._drop(name)

    def close(self) -> None:
        """Remove what was copied."""
        if self._template:
            self._drop(self._template)

    def _url(self, name: str) -> str:
        assert self._server is not None
        return make_url(self._server).set(database=name).render_as_string(hide_password=False)

    def _create(self, template: str = "template0") -> str:
        name = f"tether_test_{uuid.uuid4().hex}"
        self._execute("CREATE DATABASE {} TEMPLATE {}", name, template)
        return name

    def _drop(self, name: str) -> None:
        self._execute("DROP DATABASE {} WITH (FORCE)", name)

    def _execute(self, statement: LiteralString, *names: str) -> None:
        assert self._server is not None
        with psycopg.connect(self._server, autocommit=True) as administrator:
            administrator.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def _bring_up(url: str) -> None:
    engine = open_engine(url)
    migrate(engine)
    engine.dispose()


def copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database while others may write to it, as an operator backs it up and puts it back (docs/mlops.md)."""
    with closing(sqlite3.connect(source, timeout=30)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def tampering(database: Database) -> Iterator[Session]:
    """Run one transaction as somebody who owns the database, and has taken its triggers off for good."""
    with unit_of_work(database) as session:
        unfasten(session.connection())
        yield session


def settings_in(home: Path, **overrides: Any) -> Settings:
    """Return settings that come from nowhere but here."""
    return load_settings({}, home=home, **overrides)


def collect(into: list[tuple[str, str]]) -> Any:
    """Return a `Publish` that keeps what it is told."""

    def publish(knocks: list[tuple[str, str]]) -> None:
        into.extend(knocks)

    return publish


def write_model_folder(folder: Path, **config: Any) -> Path:
    """Write the smallest folder that can be registered as a base model."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_type": "llama", "hidden_size": 64, "max_position_embeddings": 512, **config}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors_bytes())
    return folder


def safetensors_bytes() -> bytes:
    """Return a safetensors file of one number."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def add_base_model(database: Database, name: str, folder: Path) -> BaseModel:
    """Register a model folder, with a critic as if one had been fitted, and anchors as if some had been stored."""
    from app.safety_sets.service import Rows, add_set

    with unit_of_work(database) as session:
        base = register_base_model(session, name, write_model_folder(folder))
        session.flush()
        session.add(
            Critic(
                id=new_id("critic_"),
                base_model=base.name,
                base_digest=base.digest,
                digest="c" * 64,
                files={},
                report={"auroc": 0.97, "tpr_at_1_percent_fpr": 0.88},
                low=-2.0,
                high=3.0,
                threshold=0.5,
                created_at=utc_now(),
            )
        )
        add_set(session, base, "anchors", Rows("e" * 64, 96))
    return base


def add_job(database: Database, folder: Path, **fields: Any) -> str:
    """Create a queued job as the API does, with all that it needs, and return its id."""
    from app.auth import Caller
    from app.base_models.repository import get_base_model
    from app.database import read_only, unit_of_work
    from app.domain.safety_policy import load_policy
    from app.files.service import add_file
    from app.jobs.schemas import JobCreate
    from app.jobs.service import create_job
    from app.keys.service import DEFAULT_PROJECT, ensure_admin_key
    from app.storage import Stored

    with read_only(database) as session:
        known = get_base_model(session, "model")
    if known is None:
        add_base_model(database, "model", folder / "model")
    with unit_of_work(database) as session:
        ensure_admin_key(session, "key")
        file = add_file(
            session,
            project_id=DEFAULT_PROJECT,
            filename="rows.jsonl",
            purpose="fine-tune",
            stored=Stored("a" * 64, 100),
        )
        file.rows = 10
        file.status = fields.pop("file_status", "processed")
        body = JobCreate(model="model", training_file=file.id, **fields)
        caller = Caller(project_id=DEFAULT_PROJECT, key_id="key_1")
        return create_job(session, caller, *load_policy(None), body, settings=settings_in(folder)).id
