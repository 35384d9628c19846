"""The notary on real databases: what it signs verifies, and what contradicts its memory it does not sign."""

import base64
import fcntl
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update

from app.audit.repository import append_leaf
from app.audit.service import build_evidence, prove_heads
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.canonical import canonical_bytes
from app.domain.installation_log import (
    Checkpoint,
    build_event,
    parse_checkpoint,
    parse_head_line,
    parse_log_leaf,
)
from app.domain.job import State, WorkKind
from app.domain.ledger import chain_hash, peek_kind
from app.domain.merkle import leaf_hash, root, verify_inclusion
from app.domain.note import VerifierKey, open_note, sign_note, split_note, verifier_key
from app.domain.scopes import Role
from app.errors import ConfigurationError, NotaryRefuses
from app.keys.service import DEFAULT_PROJECT, add_key, ensure_project
from app.migration import migrate
from app.models.attestation import Attestation
from app.models.installation_log import LogCheckpoint, LogEvent, LogLeaf
from app.models.job import LedgerLeaf
from app.models.work import Work
from app.notary import keyfile, repository, service
from app.notary.service import Notary, fork_log, list_keys, rotate_key, run_notary
from app.settings import Settings
from app.work.repository import add_work
from tests.support import collect, copy_database, settings_in, tampering
from tests.unit.app.domain.synthetic_job import make_job

CANCEL: dict[str, Any] = {"command": "cancel", "actor": "key_1"}


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with the schema and a project."""
    database = Database(open_engine(database_url), collect([]))
    with unit_of_work(database) as session:
        ensure_project(session)
    yield database
    database.engine.dispose()


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """Heads are due only where a job is new or has ended."""
    return settings_in(
        tmp_path / "home", database_url=database_url, head_interval_s=3600, log_origin="tether.example/log"
    )


def add_job(database: Database, *, records: int = 2) -> str:
    """Add a job whose ledger has some records."""
    with unit_of_work(database) as session:
        work = add_work(session, kind=WorkKind.TRAIN, queue="gpu", project_id=DEFAULT_PROJECT, args={})
        for _ in range(records):
            append_leaf(session, work.id, epoch=0, kind="cmd", body=CANCEL)
        return work.id


def grow(database: Database, job: str, *, state: State | None = None) -> None:
    """Append a record, and let the job be in another state."""
    with unit_of_work(database) as session:
        append_leaf(session, job, epoch=0, kind="cmd", body=CANCEL)
        if state is not None:
            session.execute(update(Work).where(Work.id == job).values(state=state))


def leaves_of(database: Database) -> list[bytes]:
    with read_only(database) as session:
        log = repository.get_log(session)
        return list(repository.iterate_log(session, log.number)) if log else []


def newest(database: Database) -> LogCheckpoint:
    with read_only(database) as session:
        log = repository.get_log(session)
        assert log is not None
        found = repository.get_checkpoint(session, log.number)
        assert found is not None
        return found


def is_signed(database: Database, origin: str) -> bool:
    """Say whether a checkpoint of this log was signed."""
    with read_only(database) as session:
        log = repository.get_log(session)
        return (
            log is not None
            and log.origin == origin
            and repository.get_checkpoint(session, log.number) is not None
        )


def opened(database: Database, settings: Settings) -> Checkpoint:
    """Return the newest checkpoint, its signature verified with the notary's key."""
    last = keyfile.load_last(settings.notary_dir)
    assert last is not None
    key = verifier_key(last.origin, keyfile.load_key(settings.notary_dir))
    return parse_checkpoint(open_note(newest(database).note.encode(), [key])[0])


@contextmanager
def running(database: Database, settings: Settings) -> Iterator[threading.Event]:
    """Run a notary's loop until the block ends."""
    stop = threading.Event()
    thread = threading.Thread(target=run_notary, args=(database, settings, stop))
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestSigning:
    def test_jobs_and_acts_come_under_a_signature(self, database: Database, settings: Settings) -> None:
        job = add_job(database)
        with unit_of_work(database) as session:
            made = add_key(session, name="k", role=Role.MEMBER)
        assert Notary(database, settings).attend() == 2
        act, head = map(parse_log_leaf, leaves_of(database))
        assert (act["event"], act["actor"], act["subject"]) == ("key.created", "command-line", made.row.id)
        assert (head["job"], head["size"], head["state"], head["previous"]) == (job, 2, "queued", None)
        assert opened(database, settings) == Checkpoint(
            "tether.example/log", 2, root(map(leaf_hash, leaves_of(database)))
        )

    def test_a_round_without_news_signs_nothing(self, database: Database, settings: Settings) -> None:
        add_job(database)
        notary = Notary(database, settings)
        assert [notary.attend() for _ in range(3)] == [1, 0, 0]
        with read_only(database) as session:
            assert len(session.scalars(select(LogCheckpoint)).all()) == 1

    def test_a_running_job_waits_for_its_interval_and_an_ended_one_does_not(
        self, database: Database, settings: Settings
    ) -> None:
        job = add_job(database)
        notary = Notary(database, settings)
        notary.attend()
        grow(database, job)
        assert notary.attend() == 0
        grow(database, job, state=State.FAILED)
        assert notary.attend() == 1
        first, second = map(parse_log_leaf, leaves_of(database))
        assert (second["size"], second["state"], second["previous"]) == (4, "failed", 0)
        with read_only(database) as session:
            records = list(session.scalars(select(LedgerLeaf.leaf).order_by(LedgerLeaf.seq)))
        assert second["root"] == root(map(leaf_hash, records)).hex()
        assert first["root"] == root(map(leaf_hash, records[:2])).hex()

    def test_a_job_that_ended_long_ago_is_found_by_the_next_sweep(
        self, database: Database, settings: Settings
    ) -> None:
        job = add_job(database)
        notary = Notary(database, settings)
        notary.attend()
        grow(database, job, state=State.FAILED)
        with unit_of_work(database) as session:
            session.execute(update(Work).values(finished_at=datetime(2020, 1, 1, tzinfo=UTC)))
        assert notary.attend() == 0
        assert Notary(database, settings).attend() == 1

    def test_every_head_is_proved(self, database: Database, settings: Settings) -> None:
        jobs = [add_job(database, records=number) for number in (1, 2, 3)]
        notary = Notary(database, settings)
        notary.attend()
        grow(database, jobs[1], state=State.CANCELLED)
        notary.attend()
        checkpoint = opened(database, settings)
        for job, heads in zip(jobs, (1, 2, 1), strict=True):
            with read_only(database) as session:
                proof = prove_heads(session, job)
            assert proof is not None
            assert proof.checkpoint == newest(database).note.encode()
            found = [parse_head_line(line) for line in proof.heads]
            assert len(found) == heads
            for each in found:
                assert verify_inclusion(
                    leaf_hash(each.leaf_bytes), each.at, checkpoint.size, each.proof, checkpoint.root
                )

    def test_nothing_is_proved_before_it_is_signed(self, database: Database, settings: Settings) -> None:
        first = add_job(database)
        Notary(database, settings).attend()
        job = add_job(database)
        with read_only(database) as session:
            assert prove_heads(session, job) is None
            assert b"heads.jsonl" not in build_evidence(session, job)
            assert b"heads.jsonl" in build_evidence(session, first)

    def test_two_notaries_of_one_folder_take_turns(self, database: Database, settings: Settings) -> None:
        one, other = Notary(database, settings), Notary(database, settings)
        for notary in (one, other, one):
            add_job(database)
            assert notary.attend() == 1
        assert opened(database, settings).size == 3
        assert opened(database, settings).root == root(map(leaf_hash, leaves_of(database)))

    def test_a_notary_that_starts_again_goes_on(self, database: Database, settings: Settings) -> None:
        add_job(database)
        Notary(database, settings).attend()
        add_job(database)
        Notary(database, settings).attend()
        assert opened(database, settings).size == 2

    def test_what_a_crash_left_unsigned_is_signed_by_the_next_one(
        self, database: Database, settings: Settings
    ) -> None:
        add_job(database)
        Notary(database, settings).attend()
        # The leaves are there and the notary's memory knows them; the signature was never written.
        with tampering(database) as session:
            session.execute(delete(LogCheckpoint))
        Notary(database, settings).attend()
        assert opened(database, settings).size == 1


class TestRefusing:
    @pytest.fixture
    def signed(self, database: Database, settings: Settings) -> list[str]:
        """Three jobs, signed."""
        jobs = [add_job(database) for _ in range(3)]
        Notary(database, settings).attend()
        return jobs

    def test_a_database_that_lost_leaves(
        self, database: Database, settings: Settings, signed: list[str]
    ) -> None:
        with tampering(database) as session:
            session.execute(delete(LogLeaf).where(LogLeaf.index == 2))
        with pytest.raises(NotaryRefuses, match=r"has signed 3 leaves .* the database has 2 leaves"):
            Notary(database, settings)

    def test_a_database_whose_leaves_were_changed(
        self, database: Database, settings: Settings, signed: list[str]
    ) -> None:
        with tampering(database) as session:
            leaf = session.get_one(LogLeaf, (repository_number(session), 0))
            leaf.leaf = leaf.leaf.replace(b'"size":2', b'"size":1')
        with pytest.raises(NotaryRefuses, match="another root at that size"):
            Notary(database, settings)

    def test_a_rollback_while_it_runs(
        self, database: Database, settings: Settings, signed: list[str]
    ) -> None:
        notary = Notary(database, settings)
        with tampering(database) as session:
            session.execute(delete(LogLeaf).where(LogLeaf.index == 2))
        with pytest.raises(NotaryRefuses, match="had 3 leaves and now has 2"):
            notary.attend()

    def test_records_of_a_job_that_were_dropped_keep_no_other_job_from_its_signature(
        self,
        database: Database,
        settings: Settings,
        signed: list[str],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        notary = Notary(database, settings)
        for job in signed[:2]:
            grow(database, job, state=State.FAILED)
        with tampering(database) as session:
            dropped = session.get_one(LedgerLeaf, (signed[0], 1))
            leaf = dropped.leaf
            session.delete(dropped)
        assert [notary.attend() for _ in range(3)] == [1, 0, 0]
        assert (newest(database).size, parse_log_leaf(leaves_of(database)[-1])["job"]) == (4, signed[1])
        said = [record.message for record in caplog.records if "signs nothing about" in record.message]
        assert said == [
            f"the notary signs nothing about {signed[0]}: its ledger has 2 records; its row says 3"
        ], "it is said once"
        with read_only(database) as session:
            assert repository.get_refusal(session) is None
            ((job, refusal),) = repository.list_refused_jobs(session).items()
        assert (job, refusal.reason) == (signed[0], "its ledger has 2 records; its row says 3")
        with unit_of_work(database) as session:
            repository.note_refusal(session, "all of it")
            repository.take_back_refusal(session)
            assert repository.list_refused_jobs(session).keys() == {job}, "that is another matter"
        with tampering(database) as session:
            session.add(LedgerLeaf(work_id=signed[0], seq=1, leaf=leaf))
        monkeypatch.setattr(service, "SWEEP_S", 0)
        assert notary.attend() == 1
        with read_only(database) as session:
            assert repository.list_refused_jobs(session) == {}

    def test_another_database(
        self, database: Database, settings: Settings, signed: list[str], tmp_path: Path
    ) -> None:
        other = Database(open_engine(f"sqlite:///{tmp_path / 'other.db'}"), collect([]))
        migrate(other.engine)
        with pytest.raises(NotaryRefuses, match="the database has none"):
            Notary(other, settings)
        other.engine.dispose()

    def test_a_refusal_that_could_not_be_noted_is_noted_later(
        self,
        database: Database,
        settings: Settings,
        signed: list[str],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(service, "POLL_S", 0.01)
        monkeypatch.setattr(service, "AFTER_REFUSAL_S", 0.01)
        with tampering(database) as session:
            session.execute(delete(LogLeaf).where(LogLeaf.index == 2))
            session.execute(text("ALTER TABLE notary_refusals RENAME TO away"))
        with running(database, settings):
            wait_until(lambda: "could not be noted" in caplog.text)
            with unit_of_work(database) as session:
                session.execute(text("ALTER TABLE away RENAME TO notary_refusals"))
            wait_until(lambda: refusal_of(database) is not None)
        assert caplog.text.count("the notary signs nothing") == 1, "it is said once"

    def test_the_loop_signs_nothing_and_goes_on_after_a_fork(
        self,
        database: Database,
        settings: Settings,
        signed: list[str],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(service, "POLL_S", 0.01)
        monkeypatch.setattr(service, "AFTER_REFUSAL_S", 0.01)
        with tampering(database) as session:
            session.execute(delete(LogLeaf).where(LogLeaf.index == 2))
        with running(database, settings) as stop:
            stop.wait(0.3)
            assert newest(database).size == 3
            refusals = [record for record in caplog.records if "the notary signs nothing" in record.message]
            assert len(refusals) == 1, "it is said once"
            assert "tether log fork" in refusals[0].message
            origin = fork_log(database, settings)
            wait_until(lambda: is_signed(database, origin))
        assert opened(database, settings).origin == origin

    def test_what_nobody_thought_of_ends_no_loop(
        self,
        database: Database,
        settings: Settings,
        signed: list[str],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(service, "POLL_S", 0.01)
        monkeypatch.setattr(service, "AFTER_REFUSAL_S", 0.01)
        sign, calls = sign_note, iter(range(2))

        def fail_once(*arguments: Any) -> bytes:
            if next(calls, None) == 0:
                raise RuntimeError("nobody thought of it")
            return sign(*arguments)

        monkeypatch.setattr(service, "sign_note", fail_once)
        add_job(database)
        with running(database, settings):
            wait_until(lambda: newest(database).size == 4)
        assert "the notary's round failed; trying again" in caplog.text

    def test_a_folder_that_fails_is_waited_for(
        self, database: Database, settings: Settings, signed: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "POLL_S", 0.01)
        memory, kept = settings.notary_dir / keyfile.STATE, settings.notary_dir / "kept"
        memory.rename(kept)
        # A link, because that can be replaced at one stroke.
        memory.symlink_to(settings.notary_dir)
        add_job(database)
        with running(database, settings) as stop:
            stop.wait(0.2)
            assert newest(database).size == 3
            kept.replace(memory)
            wait_until(lambda: newest(database).size == 4)

    def test_a_key_that_others_can_read_signs_nothing(
        self,
        database: Database,
        settings: Settings,
        signed: list[str],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(service, "POLL_S", 0.01)
        monkeypatch.setattr(service, "AFTER_REFUSAL_S", 0.01)
        (settings.notary_dir / keyfile.KEY).chmod(0o644)
        add_job(database)
        with running(database, settings):
            wait_until(lambda: "the notary signs nothing" in caplog.text)
            assert "chmod 600" in caplog.text
            (settings.notary_dir / keyfile.KEY).chmod(0o600)
            wait_until(lambda: newest(database).size == 4)

    def test_a_fork_shows_the_break_and_begins_again(
        self, database: Database, settings: Settings, signed: list[str]
    ) -> None:
        before = keyfile.load_last(settings.notary_dir)
        assert before is not None
        with tampering(database) as session:
            session.execute(delete(LogLeaf).where(LogLeaf.index == 2))
        origin = fork_log(database, settings)
        assert re.fullmatch(r"tether\.example/log/fork-[0-9a-f]{8}", origin)
        Notary(database, settings).attend()
        found = list(map(parse_log_leaf, leaves_of(database)))
        assert (found[0]["event"], found[0]["subject"]) == ("log.fork", f"{before.origin}@{before.size}")
        assert found[0]["sha256"] == before.root.hex()
        assert [leaf["job"] for leaf in found[1:]] == signed
        assert opened(database, settings).origin == origin
        again = fork_log(database, settings)
        assert again.startswith("tether.example/log/fork-")
        assert again != origin

    def test_a_fork_comes_before_the_acts_that_waited_for_the_old_log(
        self, database: Database, settings: Settings, signed: list[str]
    ) -> None:
        with unit_of_work(database) as session:
            repository.add_event(session, "key.created", actor="command-line", subject="key_1")
        fork_log(database, settings)
        with unit_of_work(database) as session:
            repository.add_event(session, "key.revoked", actor="command-line", subject="key_1")
        Notary(database, settings).attend()
        acts = [parse_log_leaf(leaf).get("event") for leaf in leaves_of(database)]
        assert acts == ["log.fork", "key.created", "key.revoked", None, None, None]

    def test_nobody_signs_while_a_log_is_forked(
        self, database: Database, settings: Settings, signed: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held = []

        def noting(function: Any) -> Any:
            def call(*arguments: Any) -> Any:
                with (settings.notary_dir / keyfile.LOCK).open("w") as file:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        held.append(False)
                    except BlockingIOError:
                        held.append(True)
                return function(*arguments)

            return call

        for name in ("load_last", "save_last"):
            monkeypatch.setattr(keyfile, name, noting(getattr(keyfile, name)))
        fork_log(database, settings)
        assert held == [True, True]


class TestActs:
    def test_more_acts_than_a_statement_has_places(self, database: Database, settings: Settings) -> None:
        count = 66_000
        with unit_of_work(database) as session:
            leaf = build_event("key.created", actor=None, subject="key_1", sha256=None, ts_db=1)
            session.execute(insert(LogEvent), [{"leaf": leaf}] * count)
        assert Notary(database, settings).attend() == count
        with read_only(database) as session:
            assert repository.list_pending_events(session) == []


def whole_job(database: Database) -> str:
    """Add a job that has its adapter, and waits for the notary."""
    made = make_job(crash=False)
    with unit_of_work(database) as session:
        job = add_work(session, kind=WorkKind.TRAIN, queue="gpu", project_id=DEFAULT_PROJECT, args={}).id
    for record in made.records:
        record.header["job"] = job
    leaves = made.leaves()
    with unit_of_work(database) as session:
        session.execute(
            insert(LedgerLeaf), [{"work_id": job, "seq": at, "leaf": leaf} for at, leaf in enumerate(leaves)]
        )
        values = {"ledger_size": len(leaves), "ledger_head": chain_hash(leaves[-1]), "state": State.SIGNING}
        session.execute(update(Work).where(Work.id == job).values(**values))
    return job


def statement_of(database: Database, job: str) -> dict[str, Any] | None:
    """Return what the notary signed about a job's adapter."""
    with read_only(database) as session:
        found = session.get(Attestation, job)
        return None if found is None else json.loads(base64.b64decode(json.loads(found.envelope)["payload"]))


class TestStatements:
    """What is signed about an adapter is what is under the signed head of its job, and nothing that came later."""

    @pytest.fixture
    def unattested(self, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> str:
        """A job whose whole record is signed, and nothing about its adapter."""
        job = whole_job(database)
        with monkeypatch.context() as patch:
            patch.setattr(service, "attest_adapters", lambda *_: None)
            Notary(database, settings).attend()
        return job

    def test_a_record_behind_the_signed_ones_changes_nothing(
        self, database: Database, settings: Settings, unattested: str
    ) -> None:
        with tampering(database) as session:
            query = select(LedgerLeaf).where(LedgerLeaf.work_id == unattested).order_by(LedgerLeaf.seq)
            leaves = [each.leaf for each in session.scalars(query)]
            (published,) = [leaf for leaf in leaves if peek_kind(leaf) == "adapter.published"]
            record = json.loads(published)
            record["body"]["zip_sha256"] = "f" * 64
            session.add(LedgerLeaf(work_id=unattested, seq=len(leaves), leaf=canonical_bytes(record)))
        Notary(database, settings).attend()
        statement = statement_of(database, unattested)
        assert statement is not None
        assert "f" * 64 not in json.dumps(statement)
        assert statement["predicate"]["runDetails"]["byproducts"][0]["annotations"]["size"] == len(leaves)

    def test_a_record_that_is_not_the_signed_one_is_refused_and_said(
        self,
        database: Database,
        settings: Settings,
        unattested: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with tampering(database) as session:
            query = select(LedgerLeaf).where(LedgerLeaf.work_id == unattested).order_by(LedgerLeaf.seq)
            (published,) = [
                each for each in session.scalars(query) if peek_kind(each.leaf) == "adapter.published"
            ]
            kept = published.leaf
            record = json.loads(kept)
            record["body"]["zip_sha256"] = "f" * 64
            published.leaf = canonical_bytes(record)
            seq = published.seq
        notary = Notary(database, settings)
        for _ in range(2):
            notary.attend()
        assert statement_of(database, unattested) is None
        assert caplog.text.count(f"the notary signs nothing about {unattested}") == 1
        with read_only(database) as session:
            assert "one of them was changed" in repository.list_refused_jobs(session)[unattested].reason
        with tampering(database) as session:
            session.get_one(LedgerLeaf, (unattested, seq)).leaf = kept
        Notary(database, settings).attend()
        assert statement_of(database, unattested) is not None
        with read_only(database) as session:
            assert repository.list_refused_jobs(session) == {}


def killed(where: str) -> Any:
    """Return what stands in for a function that a process is killed before."""

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt(where)

    return die


def keys_of(settings: Settings, origin: str = "tether.example/log") -> list[str]:
    """Return the ids of the keys that the folder knows, former ones first."""
    former = [VerifierKey(origin, each) for each in keyfile.load_former_keys(settings.notary_dir)]
    return [key.id.hex() for key in (*former, verifier_key(origin, keyfile.load_key(settings.notary_dir)))]


def signers_of(checkpoint: LogCheckpoint) -> list[str]:
    """Return the ids under a checkpoint."""
    return [signature[:4].hex() for _, signature in split_note(checkpoint.note.encode())[1]]


class TestRotation:
    @pytest.fixture
    def signed(self, database: Database, settings: Settings) -> str:
        """A job, signed; the id of the key."""
        add_job(database)
        Notary(database, settings).attend()
        return newest(database).key

    def test_the_new_key_is_announced_under_both_and_signs_alone_after(
        self, database: Database, settings: Settings, signed: str
    ) -> None:
        running = Notary(database, settings)
        old_secret = (settings.notary_dir / keyfile.KEY).read_text()
        rotated = rotate_key(database, settings)
        announced = parse_log_leaf(leaves_of(database)[-1])
        assert (announced["event"], announced["actor"]) == ("key.rotate", "command-line")
        assert f"tether.example/log+{announced['subject']}" == str(rotated.new)
        assert signers_of(newest(database)) == [signed, rotated.new.id.hex()]
        for key in rotated:
            assert parse_checkpoint(open_note(newest(database).note.encode(), [key])[0]).size == 2
        add_job(database)
        # One that ran all along signs with the new key, too.
        running.attend()
        assert signers_of(newest(database)) == [rotated.new.id.hex()]
        assert keys_of(settings) == [signed, rotated.new.id.hex()]
        everything = b"".join(each.read_bytes() for each in settings.notary_dir.iterdir())
        assert old_secret.strip().encode() not in everything, "the old private key is gone"

    @pytest.mark.parametrize(
        "point",
        [
            "the event is noted",
            "the memory is written",
            "the note is signed",
            "the checkpoint is in the database",
            "the former key is noted",
            "the key is replaced",
        ],
    )
    def test_one_that_was_cut_off_is_ended_by_the_next_notary(
        self, database: Database, settings: Settings, signed: str, point: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            if point == "the event is noted":
                patch.setattr(repository, "add_event", killed(point))
            elif point == "the memory is written":
                patch.setattr(keyfile, "save_last", killed(point))
            elif point == "the note is signed":
                patch.setattr(service, "sign_note", killed(point))
            elif point == "the checkpoint is in the database":
                patch.setattr(service, "LogCheckpoint", killed(point))
            elif point == "the former key is noted":
                patch.setattr(keyfile, "load_former_keys", kill_at(keyfile.load_former_keys, 2))
            else:
                patch.setattr(Path, "replace", kill_at(Path.replace, 4))
            with pytest.raises(KeyboardInterrupt):
                rotate_key(database, settings)
        begun = keyfile.load_next_key(settings.notary_dir)
        assert begun is not None
        new = verifier_key("tether.example/log", begun).id.hex()
        if point == "the event is noted":
            # Nothing was announced: nothing is signed with it before that is made up for.
            add_job(database)
            Notary(database, settings).attend()
            assert signers_of(newest(database)) == [signed]
            assert rotate_key(database, settings).new.id.hex() == new
        else:
            Notary(database, settings).attend()
        assert keys_of(settings) == [signed, new]
        assert signers_of(newest(database)) == [signed, new]
        assert [parse_log_leaf(leaf).get("event") for leaf in leaves_of(database)].count("key.rotate") == 1
        assert keyfile.load_next_key(settings.notary_dir) is None
        add_job(database)
        Notary(database, settings).attend()
        assert signers_of(newest(database)) == [new]

    def test_a_policy_has_the_keys_that_signed(
        self, database: Database, settings: Settings, signed: str
    ) -> None:
        first = rotate_key(database, settings)
        second = rotate_key(database, settings)
        with read_only(database) as session:
            signers = repository.list_signers(session)
        trusted, unknown = list_keys(settings, signers)
        assert trusted == {"tether.example/log": [first.old, first.new, second.new]}
        assert unknown == {}
        (settings.notary_dir / keyfile.FORMER_KEYS).unlink()
        assert list_keys(settings, signers) == (
            {"tether.example/log": [second.new]},
            {"tether.example/log": [first.old.id.hex(), first.new.id.hex()]},
        )

    def test_a_folder_from_before_the_rotation_signs_nothing(
        self, database: Database, settings: Settings, signed: str
    ) -> None:
        kept = {each: each.read_bytes() for each in settings.notary_dir.iterdir()}
        rotate_key(database, settings)
        (settings.notary_dir / keyfile.FORMER_KEYS).unlink()
        for path, content in kept.items():
            path.write_bytes(content)
        with pytest.raises(
            NotaryRefuses, match=f"has the key {signed}: the folder is from before a rotation"
        ):
            Notary(database, settings)

    def test_there_is_nothing_to_rotate_before_the_first_signature(
        self, database: Database, settings: Settings
    ) -> None:
        with pytest.raises(ConfigurationError, match="has signed nothing yet"):
            rotate_key(database, settings)

    def test_a_notary_that_refuses_rotates_nothing(
        self, database: Database, settings: Settings, signed: str
    ) -> None:
        with tampering(database) as session:
            session.execute(delete(LogLeaf))
        with pytest.raises(NotaryRefuses):
            rotate_key(database, settings)
        assert keyfile.load_next_key(settings.notary_dir) is None


def kill_at(function: Any, number: int) -> Any:
    """Return a function that does as this one, and ends the process at its call of this number."""
    calls = iter(range(1, number + 1))

    def call(*arguments: Any) -> Any:
        if next(calls) == number:
            raise KeyboardInterrupt
        return function(*arguments)

    return call


class TestTwoAndKilled:
    """Fault 16: two notaries, and one that is killed between its file and the database. Fault 9: an old backup."""

    def test_one_that_was_slow_does_not_put_the_memory_back(
        self, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_job(database)
        slow, quick = Notary(database, settings), Notary(database, settings)
        late = slow._sign
        with monkeypatch.context() as patch:
            patch.setattr(slow, "_sign", lambda: None)
            slow.attend()
        add_job(database)
        quick.attend()
        late()
        last = keyfile.load_last(settings.notary_dir)
        assert last is not None
        assert (last.size, newest(database).size) == (2, 2)

    def test_a_shorter_log_than_the_one_with_the_announcement_is_signed_by_the_old_key_alone(
        self, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_job(database)
        slow = Notary(database, settings)
        slow.attend()
        signed = newest(database).key
        late = slow._sign
        add_job(database)
        with monkeypatch.context() as patch:
            patch.setattr(slow, "_sign", lambda: None)
            slow.attend()
        with monkeypatch.context() as patch:
            # The one that rotates has put the announcement into the log, and is slower than the slow one then.
            patch.setattr(Notary, "_sign", lambda _: None)
            with pytest.raises(NotaryRefuses, match="begun and is not over"):
                rotate_key(database, settings)
        late()
        assert (newest(database).size, signers_of(newest(database))) == (2, [signed])
        slow.attend()
        new = verifier_key("tether.example/log", keyfile.load_key(settings.notary_dir)).id.hex()
        assert (newest(database).size, signers_of(newest(database))) == (3, [signed, new])
        assert new != signed

    def test_two_that_run_at_once_sign_one_history(
        self, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "POLL_S", 0.005)
        with running(database, settings), running(database, settings):
            for number in range(1, 9):
                add_job(database, records=1)
                wait_until(lambda least=number: signed_size(database) >= least)  # type: ignore[misc]
        leaves = leaves_of(database)
        with read_only(database) as session:
            checkpoints = session.scalars(select(LogCheckpoint).order_by(LogCheckpoint.size)).all()
        for each in checkpoints:
            assert each.root == root(map(leaf_hash, leaves[: each.size])).hex()
        last = keyfile.load_last(settings.notary_dir)
        assert last == Checkpoint("tether.example/log", len(leaves), root(map(leaf_hash, leaves)))

    @pytest.mark.parametrize("point", ["sign_note", "LogCheckpoint"])
    def test_one_killed_after_its_memory_was_written_is_made_up_for(
        self, database: Database, settings: Settings, point: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_job(database)
        with monkeypatch.context() as patch:
            patch.setattr(service, point, killed(point))
            with pytest.raises(KeyboardInterrupt):
                Notary(database, settings).attend()
        last = keyfile.load_last(settings.notary_dir)
        assert last is not None
        assert (last.size, signed_size(database)) == (1, 0)
        Notary(database, settings).attend()
        assert opened(database, settings) == last

    def test_a_process_killed_at_that_point_lets_go_of_the_folder(
        self, database: Database, settings: Settings
    ) -> None:
        add_job(database)
        program = (
            "import os; from app.notary import service; from app.settings import load_settings\n"
            "from app.cli.common import database_of\n"
            "service.sign_note = lambda *_: os.kill(os.getpid(), 9)\n"
            "settings = load_settings()\n"
            "with database_of(settings) as database: service.Notary(database, settings).attend()"
        )
        environment = {**os.environ, **settings.child_environment()}
        done = subprocess.run([sys.executable, "-c", program], env=environment, check=False, timeout=60)
        assert done.returncode == -9
        last = keyfile.load_last(settings.notary_dir)
        assert last is not None
        assert last.size == 1
        Notary(database, settings).attend()
        assert opened(database, settings) == last

    def test_an_old_backup_is_refused_and_said_and_the_right_one_goes_on(
        self, settings: Settings, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if database.engine.dialect.name != "sqlite":
            pytest.skip("a backup of a schema is no file")
        monkeypatch.setattr(service, "POLL_S", 0.01)
        monkeypatch.setattr(service, "AFTER_REFUSAL_S", 0.01)
        add_job(database)
        Notary(database, settings).attend()
        copy_database(tmp_path / "tether.db", tmp_path / "backup.db")
        add_job(database)
        Notary(database, settings).attend()
        backup = Database(open_engine(f"sqlite:///{tmp_path / 'backup.db'}"), collect([]))
        # It has grown again: as many leaves as were signed, and other ones.
        add_job(backup)
        with running(backup, settings):
            wait_until(lambda: refusal_of(backup) is not None)
            assert signed_size(backup) == 1
        assert "tether log fork" in str(refusal_of(backup))
        with running(database, settings):
            add_job(database)
            wait_until(lambda: signed_size(database) == 3)
        backup.engine.dispose()


def signed_size(database: Database) -> int:
    """Return how many leaves are signed."""
    with read_only(database) as session:
        log = repository.get_log(session)
        found = repository.get_checkpoint(session, log.number) if log else None
        return found.size if found else 0


def refusal_of(database: Database) -> str | None:
    """Return why the notary says that it refuses."""
    with read_only(database) as session:
        found = repository.get_refusal(session)
        return found.reason if found else None


class TestFiles:
    def test_the_key_is_for_nobody_else(self, database: Database, settings: Settings) -> None:
        Notary(database, settings)
        path = settings.notary_dir / keyfile.KEY
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o640)
        with pytest.raises(ConfigurationError, match="can be read by others; run: chmod 600"):
            Notary(database, settings)

    def test_a_damaged_key_is_not_replaced(self, database: Database, settings: Settings) -> None:
        Notary(database, settings)
        path = settings.notary_dir / keyfile.KEY
        path.write_text("zz")
        with pytest.raises(ConfigurationError, match="does not hold a key"):
            Notary(database, settings)
        assert path.read_text() == "zz"

    def test_a_key_that_was_lost_is_not_made_up(self, database: Database, settings: Settings) -> None:
        add_job(database)
        Notary(database, settings).attend()
        (settings.notary_dir / keyfile.KEY).unlink()
        with pytest.raises(ConfigurationError, match="is missing, though something was signed here before"):
            Notary(database, settings)
        assert not (settings.notary_dir / keyfile.KEY).exists()

    def test_a_damaged_memory_is_an_error(self, database: Database, settings: Settings) -> None:
        add_job(database)
        Notary(database, settings).attend()
        (settings.notary_dir / keyfile.STATE).write_text(json.dumps({"origin": "o"}))
        with pytest.raises(ConfigurationError, match="nobody knows what the notary signed last"):
            Notary(database, settings)
        # The way out that the message names is one.
        origin = fork_log(database, settings)
        Notary(database, settings).attend()
        assert opened(database, settings).origin == origin
        assert parse_log_leaf(leaves_of(database)[0])["subject"] == "tether.example/log@1"

    @pytest.mark.parametrize(
        "lost", [(keyfile.STATE,), (keyfile.STATE, keyfile.KEY)], ids=["memory", "folder"]
    )
    def test_a_memory_that_was_lost_is_not_made_up(
        self, database: Database, settings: Settings, lost: tuple[str, ...]
    ) -> None:
        add_job(database)
        Notary(database, settings).attend()
        for name in lost:
            (settings.notary_dir / name).unlink()
        with pytest.raises(NotaryRefuses, match="does not know what was signed last"):
            Notary(database, settings)
        before = newest(database)
        origin = fork_log(database, settings)
        Notary(database, settings).attend()
        fork, head = map(parse_log_leaf, leaves_of(database))
        assert (fork["event"], fork["actor"], head["size"]) == ("log.fork", "command-line", 2)
        assert (fork["subject"], fork["sha256"]) == ("tether.example/log@1", before.root)
        assert opened(database, settings).origin == origin


def repository_number(session: Any) -> int:
    log = repository.get_log(session)
    assert log is not None
    return log.number
