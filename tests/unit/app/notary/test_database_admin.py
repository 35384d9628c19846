"""The database's administrator (A23): edits, deletes, reorders, truncates, rolls back, swaps two jobs, takes triggers off.

Two whole jobs lie on a real database, their heads in the installation's log, signed. Whatever is then done to the tables, the
verifier names the first bad place in the bundle that is made of them, or the notary refuses, or both.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from app.audit.service import build_evidence, prove_heads
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.canonical import canonical_bytes, parse_canonical
from app.domain.installation_log import format_receipt, parse_head_line, parse_receipt
from app.domain.job import State, WorkKind
from app.domain.ledger import NO_LEAF, chain_hash
from app.domain.merkle import leaf_hash, root
from app.domain.note import verifier_key
from app.domain.report import Report
from app.domain.trust import Trust
from app.domain.verification import Held
from app.domain.verify import verify_bundle
from app.errors import NotaryRefuses
from app.keys.service import DEFAULT_PROJECT, ensure_project
from app.models.installation_log import LogCheckpoint, LogHead, LogLeaf
from app.models.job import LedgerLeaf
from app.models.work import Work
from app.notary import keyfile, repository
from app.notary.service import Notary
from app.settings import Settings
from app.work.repository import add_work
from tests.conftest import BACKENDS
from tests.support import Migrated, collect, settings_in, tampering
from tests.unit.app.domain.synthetic_job import Record, make_job

EARLY = 9
"""Records under a job's first head."""


class Signed(NamedTuple):
    """An installation with two jobs whose records are signed, and what a customer has of the first."""

    database: Database
    settings: Settings
    job: str
    other: str
    size: int
    trust: Trust
    receipt: Held
    folder: Path

    def verify(self, job: str | None = None) -> Report:
        """Make the bundle of a job from the tables as they are, and verify it with what is held outside."""
        with read_only(self.database) as session:
            evidence = build_evidence(session, job or self.job)
        path = self.folder / "evidence.zip"
        path.write_bytes(evidence)
        return verify_bundle(path, trust=self.trust, held=() if job else (self.receipt,))

    def assert_found(self, check: str, first_bad: int | None, *words: str) -> None:
        """Assert that this check is the first that fails, names this place, and says this."""
        report = self.verify()
        found = next(each for each in report.checks if each.outcome == "failed")
        assert (found.name, found.first_bad) == (check, first_bad), report.lines()
        assert all(word in found.detail for word in words), found.detail

    def assert_notary_refuses(self) -> None:
        """Assert that a notary that starts on these tables signs nothing."""
        with pytest.raises(NotaryRefuses):
            Notary(self.database, self.settings).attend()


@pytest.fixture(scope="module", params=BACKENDS)
def installation(
    request: pytest.FixtureRequest, migrated: Migrated, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Signed]:
    folder = tmp_path_factory.mktemp(f"home-{request.param}")
    with migrated.on(request.param, folder) as url:
        yield from build(url, folder)


@pytest.fixture
def signed(installation: Signed) -> Iterator[Signed]:
    """The installation, which is put back to what it was after the test."""
    with read_only(installation.database) as session:
        before = {table: session.execute(select(table)).mappings().all() for table in TABLES}
        works = session.execute(select(Work.id, Work.ledger_size, Work.ledger_head)).all()
    memory = installation.settings.notary_dir / keyfile.STATE
    remembered = memory.read_bytes()
    yield installation
    memory.write_bytes(remembered)
    with tampering(installation.database) as session:
        for table in TABLES:
            session.execute(delete(table))
        for table in reversed(TABLES):
            session.execute(insert(table), [dict(row) for row in before[table]])
        for job, size, head in works:
            session.execute(update(Work).where(Work.id == job).values(ledger_size=size, ledger_head=head))


TABLES = [each.__table__ for each in (LogCheckpoint, LogHead, LogLeaf, LedgerLeaf)]


def build(database_url: str, tmp_path: Path) -> Iterator[Signed]:
    database = Database(open_engine(database_url), collect([]))
    settings = settings_in(
        tmp_path / "home", database_url=database_url, head_interval_s=1, log_origin="tether.example/log"
    )
    with unit_of_work(database) as session:
        ensure_project(session)
        jobs = [
            add_work(session, kind=WorkKind.TRAIN, queue="gpu", project_id=DEFAULT_PROJECT, args={}).id
            for _ in range(2)
        ]
    for size in (EARLY, None):
        for job in jobs:
            write_ledger(database, job, size)
        Notary(database, settings).attend()
    key = verifier_key("tether.example/log", keyfile.load_key(settings.notary_dir))
    with read_only(database) as session:
        proof = prove_heads(session, jobs[0])
        size = session.get_one(Work, jobs[0]).ledger_size
    assert proof is not None
    assert len(proof.heads) == 2
    head, note = parse_receipt(format_receipt(parse_head_line(proof.heads[-1]), proof.checkpoint))
    yield Signed(
        database,
        settings,
        *jobs,
        size,
        Trust({"tether.example/log": (key,)}),
        Held("kept.tlog-proof", note, head),
        tmp_path,
    )
    database.engine.dispose()


def write_ledger(database: Database, job: str, size: int | None) -> None:
    """Give a job the records of a whole one, or the first of them: without a risk table's rows, which have a table apart."""
    made = make_job(crash=False)
    made.records = [
        made.records[0],
        *(Record("cmd", {"command": "pause", "actor": f"key-{at}"}, 0, 0) for at in range(15)),
    ]
    for record in made.records:
        record.header["job"] = job
    leaves = made.leaves()[:size]
    with unit_of_work(database) as session:
        has = session.get_one(Work, job).ledger_size
        rows = [{"work_id": job, "seq": seq, "leaf": leaf} for seq, leaf in enumerate(leaves) if seq >= has]
        session.execute(insert(LedgerLeaf), rows)
        state = State.RUNNING if size else State.CANCELLED
        session.execute(
            update(Work)
            .where(Work.id == job)
            .values(ledger_size=len(leaves), ledger_head=chain_hash(leaves[-1]), state=state)
        )


# --- what an administrator does ---------------------------------------------------------------------------


def leaves_of(session: Session, job: str) -> list[bytes]:
    return list(
        session.scalars(select(LedgerLeaf.leaf).where(LedgerLeaf.work_id == job).order_by(LedgerLeaf.seq))
    )


def put(session: Session, job: str, leaves: list[bytes]) -> None:
    """Replace a job's records, and let its row agree."""
    session.execute(delete(LedgerLeaf).where(LedgerLeaf.work_id == job))
    session.execute(
        insert(LedgerLeaf), [{"work_id": job, "seq": at, "leaf": leaf} for at, leaf in enumerate(leaves)]
    )
    session.execute(
        update(Work).where(Work.id == job).values(ledger_size=len(leaves), ledger_head=chain_hash(leaves[-1]))
    )


def chained(leaves: list[bytes]) -> list[bytes]:
    """Return records that are numbered and chained anew, as somebody does who knows the format."""
    result: list[bytes] = []
    for seq, leaf in enumerate(leaves):
        record = parse_canonical(leaf)
        assert isinstance(record, dict)
        prev = chain_hash(result[-1]) if result else NO_LEAF
        result.append(canonical_bytes(record | {"seq": seq, "prev": prev}))
    return result


def edited(leaf: bytes) -> bytes:
    record = parse_canonical(leaf)
    assert isinstance(record, dict)
    return canonical_bytes(record | {"body": record["body"] | {"actor": "key-forged"}})


def with_edit(at: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda leaves: [*leaves[:at], edited(leaves[at]), *leaves[at + 1 :]]


def without(at: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda leaves: leaves[:at] + leaves[at + 1 :]


def swapped(at: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda leaves: [*leaves[:at], leaves[at + 1], leaves[at], *leaves[at + 2 :]]


@pytest.mark.parametrize(
    ("change", "check", "first_bad", "words"),
    [
        (with_edit(5), "chain", 6, ()),
        (with_edit(15), "heads", 1, ("of the records 9 to 15 one is not as it was signed",)),
        (lambda leaves: chained(with_edit(5)(leaves)), "heads", 0, ("of the records 0 to 8 one",)),
        (lambda leaves: chained(with_edit(12)(leaves)), "heads", 1, ("of the records 9 to 15 one",)),
        (without(5), "sequence", 5, ()),
        (lambda leaves: chained(without(5)(leaves)), "heads", 0, ("of the records 0 to 8 one",)),
        (swapped(5), "sequence", 5, ()),
        (lambda leaves: chained(swapped(12)(leaves)), "heads", 1, ("of the records 9 to 15 one",)),
        (lambda leaves: leaves[:12], "heads", 1, ("the log knows 16 records", "the bundle has 12")),
        (lambda leaves: leaves[:4], "heads", 0, ("the log knows 9 records", "the bundle has 4")),
        (lambda leaves: [*leaves[:5], b"{}", *leaves[6:]], "records", 5, ()),
        (lambda leaves: [*leaves[:5], leaves[5] + b" ", *leaves[6:]], "records", 5, ("canonical",)),
    ],
    ids=range(12),
)
def test_changed_records_are_found_and_the_first_bad_place_is_named(
    signed: Signed,
    change: Callable[[list[bytes]], list[bytes]],
    check: str,
    first_bad: int,
    words: tuple[str, ...],
) -> None:
    assert signed.verify().ok, signed.verify().lines()
    with tampering(signed.database) as session:
        put(session, signed.job, change(leaves_of(session, signed.job)))
    signed.assert_found(check, first_bad, *words)
    assert signed.verify(signed.other).ok, "the other job is as it was"


def test_two_jobs_that_change_places_are_found(signed: Signed) -> None:
    with tampering(signed.database) as session:
        ours, theirs = leaves_of(session, signed.job), leaves_of(session, signed.other)
        put(session, signed.job, theirs)
        put(session, signed.other, ours)
    signed.assert_found("sequence", 0, f"it belongs to the job {signed.other}")


def test_two_jobs_that_change_places_and_names_are_found(signed: Signed) -> None:
    with tampering(signed.database) as session:
        ours, theirs = leaves_of(session, signed.job), leaves_of(session, signed.other)
        renamed = [leaf.replace(signed.other.encode(), signed.job.encode()) for leaf in theirs]
        put(session, signed.job, chained(with_edit(12)(renamed)))
        put(session, signed.other, ours)
    signed.assert_found("heads", 1, "of the records 9 to 15 one is not as it was signed")


# --- the log above the ledgers ----------------------------------------------------------------------------


def test_a_head_rewritten_with_the_records_is_found_and_refused(signed: Signed) -> None:
    """Both levels made to agree: only the signature, which the database cannot make, stands against it."""
    with tampering(signed.database) as session:
        forged = chained(with_edit(12)(leaves_of(session, signed.job)))
        put(session, signed.job, forged)
        at = session.scalars(
            select(LogHead.index).where(LogHead.work_id == signed.job).order_by(LogHead.size.desc()).limit(1)
        ).one()
        leaf = session.scalars(select(LogLeaf.leaf).where(LogLeaf.index == at)).one()
        head = parse_canonical(leaf)
        assert isinstance(head, dict)
        head["root"] = root(map(leaf_hash, forged)).hex()
        session.execute(update(LogLeaf).where(LogLeaf.index == at).values(leaf=canonical_bytes(head)))
    signed.assert_found("heads", 0, "its proof does not lead to the root of the checkpoint")
    signed.assert_notary_refuses()


def test_a_head_that_is_taken_away_is_found(signed: Signed) -> None:
    with tampering(signed.database) as session:
        session.execute(delete(LogHead).where(LogHead.work_id == signed.job, LogHead.size == EARLY))
    signed.assert_found("heads", 0, "as the job's previous head; here that is None")


def test_a_log_that_lost_its_end_is_refused(signed: Signed) -> None:
    with tampering(signed.database) as session:
        last = session.scalars(select(LogLeaf.index).order_by(LogLeaf.index.desc()).limit(1)).one()
        session.execute(delete(LogHead).where(LogHead.index == last))
        session.execute(delete(LogLeaf).where(LogLeaf.index == last))
    signed.assert_notary_refuses()


def test_a_database_rolled_back_to_an_earlier_state_is_found_and_refused(signed: Signed) -> None:
    """A restored backup is consistent and was signed once. What is outside is newer, and so is the notary's memory."""
    with tampering(signed.database) as session:
        first = session.scalars(select(LogCheckpoint.size).order_by(LogCheckpoint.size).limit(1)).one()
        session.execute(delete(LogCheckpoint).where(LogCheckpoint.size > first))
        session.execute(delete(LogHead).where(LogHead.index >= first))
        session.execute(delete(LogLeaf).where(LogLeaf.index >= first))
        for job in (signed.job, signed.other):
            put(session, job, leaves_of(session, job)[:EARLY])
    signed.assert_found("held", None, f"knows {signed.size} records of this job; the bundle has {EARLY}")
    signed.assert_notary_refuses()


def test_a_checkpoint_that_is_put_back_is_stale(signed: Signed) -> None:
    """Only the signature is from before: a server may give that to hide what the log has said since."""
    with tampering(signed.database) as session:
        first = session.scalars(select(LogCheckpoint.size).order_by(LogCheckpoint.size).limit(1)).one()
        session.execute(delete(LogCheckpoint).where(LogCheckpoint.size > first))
    signed.assert_found("held", None, "STALE")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda note: note.replace("\n4\n", "\n3\n", 1), "is not one over this text"),
        (lambda note: note.replace("tether.example/log\n", "tether.example/gol\n", 1), "does not name"),
        (lambda note: note.partition("\n\n")[0] + "\n", "no empty line divides"),
    ],
    ids=["size", "origin", "signature"],
)
def test_a_checkpoint_that_was_edited_is_no_signature(
    signed: Signed, change: Callable[[str], str], words: str
) -> None:
    with tampering(signed.database) as session:
        newest = session.scalars(select(LogCheckpoint).order_by(LogCheckpoint.size.desc()).limit(1)).one()
        assert change(newest.note) != newest.note
        newest.note = change(newest.note)
    signed.assert_found("signature", None, words)


def test_an_administrator_who_asks_the_notary_to_sign_a_changed_record_gets_two_heads(signed: Signed) -> None:
    """A record that grows again after its end: the notary signs what there is, and the end is not the last any more."""
    with tampering(signed.database) as session:
        leaves = leaves_of(session, signed.job)
        put(session, signed.job, chained([*leaves, leaves[-1]]))
    Notary(signed.database, signed.settings).attend()
    with read_only(signed.database) as session:
        log = repository.get_log(session)
        assert log is not None
        assert [head.size for head in repository.list_heads(session, log.number, signed.job)] == [9, 16, 17]
    assert signed.verify().ok, "a further command is no lie: it shows, with its own head"
