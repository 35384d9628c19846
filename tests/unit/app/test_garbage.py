"""What no row refers to goes after a while; what a row refers to, or somebody may be about to commit, stays."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, update

from app import garbage, storage
from app.database import Database, open_engine, unit_of_work
from app.domain.job import State
from app.files.service import add_file
from app.jobs.repository import add_checkpoint
from app.keys.service import DEFAULT_PROJECT
from app.models.base import utc_now
from app.models.installation_log import NotaryRefusal
from app.models.job import Job
from app.models.work import Work, Worker
from app.notary.repository import OF_EVERYTHING
from app.notary.service import NOTARY
from app.serve import prepare
from app.settings import Settings
from app.work import repository
from tests.support import add_job, settings_in

OLD_S = 10_000.0


class Installation:
    """A database with a storage, a folder or a bucket."""

    def __init__(self, settings: Settings) -> None:
        prepare(settings)
        self.settings = settings
        self.database = Database(open_engine(settings.database_url), lambda _: None)

        with unit_of_work(self.database) as session:
            repository.record_worker(session, worker_id="notary_1", queue=NOTARY, host="test")

    def store(self, content: bytes) -> storage.Stored:
        """Store bytes that were stored long ago, as far as a disk can be told so."""
        stored = storage.store_stream(self.settings.storage, io.BytesIO(content))
        if isinstance(self.settings.storage, Path):
            age(storage.path_of(self.settings.storage, stored.sha256))
        return stored

    def has(self, stored: storage.Stored) -> bool:
        found = storage.list_shard(self.settings.storage, stored.sha256[:2])
        return stored.sha256 in {each.sha256 for each in found}

    def refer_to(self, stored: storage.Stored) -> None:
        with unit_of_work(self.database) as session:
            add_file(session, project_id=DEFAULT_PROJECT, filename="a", purpose="fine-tune", stored=stored)

    def collect(self, **changes: float) -> int:
        """Collect with other settings. The least grace that any upload has is left out, or nothing would be old enough."""
        settings = self.settings.model_copy(update=changes)
        return garbage.collect_all(self.database, settings, least_grace_s=0)


def age(path: Path) -> None:
    os.utime(path, (time.time() - OLD_S,) * 2)


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    found = Installation(settings_in(tmp_path))
    yield found
    found.database.engine.dispose()


@pytest.fixture
def on_bucket(tmp_path: Path, bucket: str) -> Iterator[Installation]:
    # A store has its own clock, and cannot be told that something is old.
    found = Installation(settings_in(tmp_path, storage_url=bucket, deletion_grace_s=0))
    yield found
    found.database.engine.dispose()


def test_only_what_no_row_refers_to_goes(installation: Installation) -> None:
    needed, unneeded = installation.store(b"needed"), installation.store(b"unneeded")
    installation.refer_to(needed)
    assert installation.collect() == 1
    assert installation.has(needed)
    assert not installation.has(unneeded)
    assert installation.collect() == 0


def test_what_was_stored_just_now_stays(installation: Installation) -> None:
    fresh = storage.store_stream(installation.settings.storage, io.BytesIO(b"its row comes in a moment"))
    again = installation.store(b"old")
    # The same bytes, stored once more: whoever did may be about to commit them.
    storage.store_stream(installation.settings.storage, io.BytesIO(b"old"))
    assert installation.collect() == 0
    assert installation.has(fresh)
    assert installation.has(again)


def test_what_an_attempt_stored_stays_while_it_lasts(installation: Installation) -> None:
    """An evaluation may take hours between storing an adapter and publishing it."""
    job_id = add_job(installation.database, installation.settings.home)
    with unit_of_work(installation.database) as session:
        assert repository.claim(session, job_id, owner="test", lease_ms=60_000) is not None
    adapter = storage.store_stream(installation.settings.storage, io.BytesIO(b"adapter"))
    assert installation.collect(deletion_grace_s=0) == 0
    with unit_of_work(installation.database) as session:
        session.execute(update(Work).values(state=State.QUEUED))
    assert installation.has(adapter)
    assert installation.collect(deletion_grace_s=0) == 1


def test_nothing_goes_while_the_notary_refuses_the_database(installation: Installation) -> None:
    """It may be an old backup, put in the place of a database that refers to all of it."""
    unneeded = installation.store(b"unknown to the backup")
    with unit_of_work(installation.database) as session:
        session.add(NotaryRefusal(number=OF_EVERYTHING, reason="rolled back", since=utc_now()))
    assert installation.collect() == 0
    assert installation.has(unneeded)


@pytest.mark.parametrize("silent_ms", [None, 3_600_000])
def test_nothing_goes_unless_a_notary_signs_the_database(
    installation: Installation, silent_ms: int | None
) -> None:
    """An old backup has no refusal before a notary has looked at it, and knows at most one that lived long ago."""
    unneeded = installation.store(b"unknown to the backup")
    with unit_of_work(installation.database) as session:
        worker = session.get_one(Worker, "notary_1")
        if silent_ms is None:
            session.delete(worker)
        else:
            worker.seen_at_ms -= silent_ms
    assert installation.collect() == 0
    assert installation.has(unneeded)


def test_an_upload_that_is_under_way_stays_without_a_grace_too(installation: Installation) -> None:
    settings = installation.settings.model_copy(update={"deletion_grace_s": 0})
    fresh = storage.store_stream(installation.settings.storage, io.BytesIO(b"its row comes in a moment"))
    assert garbage.collect_all(installation.database, settings) == 0
    assert installation.has(fresh)
    age(storage.path_of(installation.settings.storage_dir, fresh.sha256))
    assert garbage.collect_all(installation.database, settings) == 1


def test_a_process_begins_anywhere() -> None:
    """One that restarts often would never get to the last part otherwise."""
    assert len({next(garbage.take_turns()) for _ in range(100)}) > 1
    turns = garbage.take_turns()
    assert {next(turns) for _ in garbage.TURNS} == set(garbage.TURNS)


def test_a_process_that_works_opens_models_where_they_are_collected(installation: Installation) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom worker import process\n"
        "from worker.training.model_folder import open_model_folder\n"
        "sys.argv = ['process', '--queue', 'cpu']\nassert process.main() == 0\n"
        "with open_model_folder(Path(sys.executable).parent, {}) as private: print(private)"
    )
    environment = {**os.environ, **installation.settings.child_environment()}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )
    private = Path(done.stdout.splitlines()[-1])
    assert private.parent == installation.settings.home
    assert private.name.startswith(garbage.TEMPORARY)


def test_what_killed_processes_left_goes(installation: Installation) -> None:
    home, folder = installation.settings.home, installation.settings.storage_dir
    left = [folder / ".incoming-1", *(home / f"{name}x" for name in garbage.TEMPORARY)]
    for each in left:
        each.mkdir() if each.parent == home else each.write_bytes(b"half")
        age(each)
    (folder / ".incoming-2").write_bytes(b"being written")
    (home / "tether.toml").write_bytes(b"somebody's own")
    age(home / "tether.toml")
    # A worker does this on a machine of its own, where no reconciler comes.
    assert garbage.collect_machine(installation.database, installation.settings) == len(left)
    assert not any(each.exists() for each in left)
    assert (folder / ".incoming-2").exists()
    assert (home / "tether.toml").exists()


def test_a_part_is_looked_at_in_each_round_and_all_of_them_in_turn(installation: Installation) -> None:
    unneeded = installation.store(b"unneeded")
    for _ in garbage.TURNS:
        garbage.collect_garbage(installation.database, installation.settings)
    assert not installation.has(unneeded)


def add_rows(installation: Installation, job_id: str, stored: dict[str, str] | None) -> None:
    with unit_of_work(installation.database) as session:
        job = session.get_one(Job, job_id)
        for step, folder in ((1, None), (2, "step-2"), (3, "step-3")):
            add_checkpoint(
                session,
                job,
                step=step,
                kind="interval",
                digest="d" * 64,
                folder=folder,
                stored=stored if folder else None,
                metrics={},
            )


def test_checkpoints_go_that_no_row_keeps(installation: Installation) -> None:
    job_id = add_job(installation.database, installation.settings.home)
    add_rows(installation, job_id, None)
    root = installation.settings.storage_dir / "checkpoints"
    for name in (f"{job_id}/step-1", f"{job_id}/step-2", f"{job_id}/.writing-1", "ftjob-unknown/step-9"):
        (root / name).mkdir(parents=True)
        (root / name / "manifest.json").write_bytes(b"{}")
        age(root / name)
    (root / job_id / ".writing-2").mkdir()
    for job in root.iterdir():
        age(job)
    assert garbage.collect_machine(installation.database, installation.settings) == 3
    assert sorted(each.name for each in (root / job_id).iterdir()) == [".writing-2", "step-2"]
    assert not list((root / "ftjob-unknown").iterdir())

    # Nobody goes on with a job that has ended.
    with unit_of_work(installation.database) as session:
        session.execute(update(Work).values(state=State.FAILED))
    age(root / "ftjob-unknown")
    assert garbage.collect_machine(installation.database, installation.settings) == 1
    assert [each.name for each in root.iterdir()] == [job_id]


def test_a_folder_that_another_worker_removes_meanwhile_is_passed_over(installation: Installation) -> None:
    root = installation.settings.checkpoints_dir
    for name in ("ftjob-a", "ftjob-b"):
        (root / name / "step-1").mkdir(parents=True)
        age(root / name / "step-1")
    before = garbage.find_cutoff(installation.database, installation.settings)

    def remove(*_: object) -> None:
        shutil.rmtree(root / "ftjob-a")

    # Between the listing of the jobs and that of each of them.
    event.listen(installation.database.engine, "before_cursor_execute", remove, once=True)
    assert garbage.collect_machine(installation.database, installation.settings, before) == 1
    assert [each.name for each in root.iterdir()] == ["ftjob-b"]


class TestBucket:
    def test_only_what_no_row_refers_to_goes(self, on_bucket: Installation) -> None:
        needed, unneeded = on_bucket.store(b"needed"), on_bucket.store(b"unneeded")
        on_bucket.refer_to(needed)
        assert on_bucket.collect(deletion_grace_s=3600) == 0
        time.sleep(1.1)  # The store tells whole seconds.
        assert on_bucket.collect() == 1
        assert on_bucket.has(needed)
        assert not on_bucket.has(unneeded)

    def test_checkpoints_go_that_no_row_keeps(self, on_bucket: Installation) -> None:
        job_id = add_job(on_bucket.database, on_bucket.settings.home)
        places = {
            job: garbage.place_of_checkpoints(on_bucket.settings, job) for job in (job_id, "ftjob-unknown")
        }
        for place in places.values():
            assert isinstance(place, str)
            for content in (b"weights", b"moments of a step that no row names"):
                storage.store_stream(place, io.BytesIO(content))
        kept = hashlib.sha256(b"weights").hexdigest()
        add_rows(on_bucket, job_id, {"adapter.safetensors": kept})
        time.sleep(1.1)
        assert on_bucket.collect() == 3
        left = storage.list_tree(on_bucket.settings.storage_url, "checkpoints")
        assert [(job, found.sha256) for job, found in left] == [(job_id, kept)]

    def test_a_store_that_is_away_is_waited_for(
        self, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        away = Installation(settings_in(tmp_path, storage_url=f"{bucket}/away"))
        assert garbage.collect_part(away.database, away.settings, "ab") == 0
        away.database.engine.dispose()
