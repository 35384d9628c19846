"""Every column that refers to stored bytes is on the one list of them."""

import importlib
import io
import pkgutil
from pathlib import Path

from sqlalchemy import JSON, String

from app import models, stored_bytes
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.job import State
from app.files.repository import is_in_use
from app.files.service import add_file
from app.keys.service import DEFAULT_PROJECT
from app.models.base import Base, utc_now
from app.models.base_model import Critic
from app.models.work import Work
from app.serve import prepare
from app.storage import store_stream
from tests.support import add_base_model, add_job, settings_in

NOT_STORED = {
    "api_keys.key_digest": "of a key's secret",
    "base_models.digest": "of a folder outside the storage",
    "base_models.files": "likewise",
    "checkpoints.digest": "of the digests in `stored`",
    "critics.base_digest": "of a base model",
    "critics.digest": "of the digests in `files`",
    "evaluations.result_sha256": "of a result that is in the row",
    "jobs.result_files": "ids of files, which have rows of their own",
    "log_checkpoints.root": "of a tree",
    "noted_digests.sha256": "of what an act was about",
    "policies.sha256": "of a text that is in the row",
    "replies.body_sha256": "of a request",
    "reports.digest": "of what a report is about",
    "weight_downloads.sha256": "of bytes that a row of another table keeps",
    "work.ledger_head": "of a leaf",
}
"""Columns that look like such a digest and are none, each with what it is of."""
WORDS = ("sha256", "digest", "files", "stored", "root", "head")


def test_no_column_is_forgotten() -> None:
    for module in pkgutil.iter_modules(models.__path__):
        importlib.import_module(f"{models.__name__}.{module.name}")
    found = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, String | JSON) and any(word in column.name for word in WORDS)
    }
    listed = {*stored_bytes.REFERENCES, *stored_bytes.IN_OBJECTS, *stored_bytes.OF_CHECKPOINTS}
    assert found - listed - NOT_STORED.keys() == set(), (
        "list it in app/stored_bytes.py, or here as no reference"
    )
    assert NOT_STORED.keys() <= found, "a column that is not there any more"
    in_args = {"work.args.data_sha256", "work.args.validation_sha256"}
    assert listed - found == in_args, "a column that is not there any more"


def test_what_rows_refer_to_is_found_and_missed(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    prepare(settings)
    database = Database(open_engine(settings.database_url), lambda _: None)
    add_base_model(database, "model", tmp_path / "model")
    kept = store_stream(settings.storage, io.BytesIO(b"kept"))
    gone = store_stream(settings.storage, io.BytesIO(b"gone"))
    with unit_of_work(database) as session:
        for stored in (kept, gone):
            file = add_file(
                session, project_id=DEFAULT_PROJECT, filename="a", purpose="fine-tune", stored=stored
            )
        # Of a deleted file the bytes may be there, and need not be.
        file.deleted_at = utc_now()
        session.add_all([critic(model="model", digest="7" * 64)])
    asked = [kept.sha256, gone.sha256, "e" * 64, "7" * 64, "0" * 64]
    with read_only(database) as session:
        assert stored_bytes.find_referenced(session, asked) == set(asked[:-1])
        needed = set(stored_bytes.list_needed(session))
    assert needed == {
        (kept.sha256, "files.sha256"),
        ("e" * 64, "safety_sets.sha256"),
        ("7" * 64, "critics.files"),
    }
    with unit_of_work(database) as session:
        file = session.get_one(type(file), file.id)
        file.bytes_removed_at = utc_now()
    with read_only(database) as session:
        assert gone.sha256 not in stored_bytes.find_referenced(session, asked)
    database.engine.dispose()


def test_what_work_is_to_read_is_kept_until_it_has_ended(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    prepare(settings)
    database = Database(open_engine(settings.database_url), lambda _: None)
    work_id = add_job(database, tmp_path)
    digests = {"data_sha256": "1" * 64, "validation_sha256": "2" * 64}
    with unit_of_work(database) as session:
        work = session.get_one(Work, work_id)
        work.args = {**work.args, **digests}
    with read_only(database) as session:
        assert stored_bytes.find_referenced(session, digests.values()) == set(digests.values())
        assert all(is_in_use(session, each) for each in digests.values())
        assert {(sha256, f"work.args.{name}") for name, sha256 in digests.items()} <= set(
            stored_bytes.list_needed(session)
        )
    with unit_of_work(database) as session:
        session.get_one(Work, work_id).state = State.FAILED
    with read_only(database) as session:
        assert stored_bytes.find_referenced(session, digests.values()) == set()
        assert not any(is_in_use(session, each) for each in digests.values())
    database.engine.dispose()


def critic(*, model: str, digest: str) -> Critic:
    """Return a critic with one file."""
    return Critic(
        id="critic_9",
        base_model=model,
        base_digest="b" * 64,
        digest="d" * 64,
        files={"probe.safetensors": digest},
        report={},
        low=0.0,
        high=1.0,
        threshold=None,
        created_at=utc_now(),
    )
