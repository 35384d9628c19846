"""A lying server (A24): what a customer kept from before shows a rewritten record, a split view and a stale checkpoint."""

import base64
from pathlib import Path

import pytest

from app.domain.bundle import LogProof, write_bundle
from app.domain.installation_log import build_event, format_receipt, parse_head_line, parse_receipt
from app.domain.note import sign_note, split_note, verifier_key
from app.domain.report import Report
from app.domain.trust import Trust
from app.domain.verification import Held
from app.domain.verify import verify_bundle
from tests.unit.app.domain.synthetic_job import JOB, SyntheticJob, outcomes
from tests.unit.app.domain.test_checks_log import KEY, ORIGIN, STRANGER, TRUST, Log, assert_only, root_at


@pytest.fixture
def log(job: SyntheticJob) -> Log:
    return Log(job)


def receipt_of(proof: LogProof, head: int = -1, name: str = "kept.tlog-proof") -> Held:
    """Return what a customer kept of a proof: the receipt of one of its heads, through the bytes that a server gives."""
    found, note = parse_receipt(format_receipt(parse_head_line(proof.heads[head]), proof.checkpoint))
    return Held(name, note, found)


def checkpoint_of(proof: LogProof) -> Held:
    return Held("kept.note", proof.checkpoint, None)


def check(
    job: SyntheticJob, proof: LogProof | None, folder: Path, *held: Held, trust: Trust | None = TRUST
) -> Report:
    path = folder / "evidence.zip"
    with path.open("wb") as file:
        write_bundle(file, job=JOB, leaves=job.leaves(), risk_table=job.table, log=proof)
    return verify_bundle(path, trust=trust, held=held)


def detail(report: Report) -> str:
    return next(each.detail for each in report.checks if each.name == "held")


def test_what_was_kept_agrees_with_an_honest_bundle(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    proof = log.prove()
    for held in ((receipt_of(proof),), (receipt_of(proof, 0), receipt_of(proof), checkpoint_of(proof))):
        report = check(job, proof, tmp_path, *held)
        assert report.ok, report.lines()
        assert outcomes(report)["held"] == "ok"
        assert f"has the same first {log.whole} records" in detail(report)


def test_a_log_that_grew_still_has_what_was_kept(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    kept = log.prove()
    log.others = 9
    grown = log.prove()
    report = check(job, grown, tmp_path, receipt_of(kept))
    assert report.ok, report.lines()
    assert outcomes(report)["held"] == "ok"
    report = check(job, grown, tmp_path, checkpoint_of(kept))
    assert report.ok
    assert outcomes(report)["held"] == "not checked"
    assert "an audit of the log shows" in detail(report)


def test_a_record_that_was_rewritten_and_signed_again_is_found(
    job: SyntheticJob, log: Log, tmp_path: Path
) -> None:
    """Whoever has database and key can make another history. What is outside remembers the first one."""
    kept = log.prove()
    end = job.records[-1]
    end.body["state"], end.body["error"] = "failed", "training_failed"
    rewritten = Log(job).prove()
    assert check(job, rewritten, tmp_path).ok, "without the receipt nobody would know"
    report = check(job, rewritten, tmp_path, receipt_of(kept))
    assert_only(report, "held", f"over the first {log.whole} records", "not as it was")


def test_an_unsigned_bundle_is_held_against_a_receipt(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    kept = log.prove()
    report = check(job, None, tmp_path, receipt_of(kept), trust=None)
    assert (report.ok, outcomes(report)["held"]) == (True, "ok")
    report = check(job, None, tmp_path, checkpoint_of(kept), trust=None)
    assert (report.ok, outcomes(report)["held"]) == (True, "not checked")
    job.records[-1].body |= {"state": "failed", "error": "training_failed"}
    assert_only(check(job, None, tmp_path, receipt_of(kept), trust=None), "held", "not as it was")


def test_a_record_that_was_cut_short_is_found(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    kept = log.prove()
    size = log.whole - 2
    cut = SyntheticJob(job.records[:size], job.table)
    log.sizes, log.roots, log.previous, log.places = [3], [root_at(job, 3)], [None], [1]
    assert check(cut, log.prove(), tmp_path).ok, "without the receipt nobody would know"
    report = check(cut, log.prove(), tmp_path, receipt_of(kept))
    assert_only(report, "held", f"knows {log.whole} records of this job; the bundle has {size}")


def test_two_logs_of_one_name_are_a_split_view(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    kept = log.prove()
    log.others_say = "another"
    shown = log.prove()
    for held in (receipt_of(kept), checkpoint_of(kept)):
        assert_only(check(job, shown, tmp_path, held), "held", "SPLIT VIEW", "two roots at size 5")


def test_a_log_that_lost_a_head_of_the_job_is_a_split_view(
    job: SyntheticJob, log: Log, tmp_path: Path
) -> None:
    kept = log.prove()
    log.others, log.places, log.previous = 9, [4, 6], [None, 4]
    report = check(job, log.prove(), tmp_path, receipt_of(kept))
    assert_only(report, "held", "SPLIT VIEW", "at index 3")


def test_a_checkpoint_older_than_the_one_kept_is_stale(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    shown = log.prove()
    log.others = 9
    kept = log.prove()
    for held in (receipt_of(kept), checkpoint_of(kept)):
        assert_only(check(job, shown, tmp_path, held), "held", "STALE", "it is of 5 leaves")


def test_a_fork_is_named_and_still_held_against_the_records(
    job: SyntheticJob, log: Log, tmp_path: Path
) -> None:
    kept = log.prove()
    log.origin = f"{ORIGIN}/fork-0a1b2c3d"
    trust = Trust({**TRUST.logs, log.origin: (verifier_key(log.origin, KEY),)})
    report = check(job, log.prove(), tmp_path, receipt_of(kept), trust=trust)
    assert report.ok, report.lines()
    signature = next(each.detail for each in report.checks if each.name == "signature")
    assert f"this log is a FORK: it does not go on from what {ORIGIN} had signed before" in signature
    report = check(job, log.prove(), tmp_path, checkpoint_of(kept), trust=trust)
    assert outcomes(report)["held"] == "not checked"
    assert f"is of the log {ORIGIN}, and the bundle of {log.origin}" in detail(report)


def test_a_receipt_that_proves_nothing_is_no_receipt(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    proof = log.prove()
    kept = receipt_of(proof)
    assert kept.head is not None
    wrong = [bytes(32), *kept.head.proof[1:]]
    broken = Held("kept", kept.note, kept.head._replace(proof=wrong))
    assert_only(check(job, proof, tmp_path, broken), "held", "does not lead to the root of its checkpoint")
    log.job = "ftjob-other"
    other = receipt_of(log.prove())
    assert_only(check(job, proof, tmp_path, other), "held", "a receipt of the job ftjob-other")
    log.job, log.key = JOB, STRANGER
    strange = receipt_of(log.prove())
    assert_only(check(job, proof, tmp_path, strange), "held", "knows no such key")
    assert_only(check(job, proof, tmp_path, Held("kept", b"no note", None)), "held", "kept: no empty line")


def test_a_checkpoint_in_the_bundle_that_cannot_be_read_says_so(
    job: SyntheticJob, log: Log, tmp_path: Path
) -> None:
    """Then the heads fail too, and what was kept has nothing to be compared with."""
    proof = log.prove()
    report = check(job, LogProof(b"no note", proof.heads), tmp_path, receipt_of(proof))
    assert (outcomes(report)["heads"], outcomes(report)["held"]) == ("failed", "not checked")


# --- signatures -------------------------------------------------------------------------------------------


def test_further_signatures_of_strangers_change_nothing(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    proof = log.prove()
    text, _ = split_note(proof.checkpoint)
    both = sign_note(text, [("stranger", STRANGER), (ORIGIN, KEY), (ORIGIN, STRANGER)])
    report = check(job, LogProof(both, proof.heads), tmp_path)
    assert report.ok, report.lines()
    only_strangers = sign_note(text, [("stranger", STRANGER), (ORIGIN, STRANGER)])
    assert_only(check(job, LogProof(only_strangers, proof.heads), tmp_path), "signature", "knows no such key")


def test_a_trusted_signature_over_another_text_is_none(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    """A genuine line, moved from an older checkpoint of the same log to one that nobody signed."""
    proof = log.prove()
    log.others = 9
    newer = log.prove()
    line = proof.checkpoint.rpartition(b"\n\n")[2]
    forged = newer.checkpoint.rpartition(b"\n\n")[0] + b"\n\n" + line
    report = check(job, LogProof(forged, newer.heads), tmp_path)
    assert_only(report, "signature", "is not one over this text")


def test_a_key_whose_id_collides_is_still_another_key(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    """The id is four bytes and no secret: here a stranger's signature goes under the id of the trusted key."""
    proof = log.prove()
    text, lines = split_note(proof.checkpoint)
    _, strange = split_note(sign_note(text, [(ORIGIN, STRANGER)]))[1][0]
    forged = base64.b64encode(lines[0][1][:4] + strange[4:]).decode()
    note = f"{text}\n— {ORIGIN} {forged}\n".encode()
    assert_only(check(job, LogProof(note, proof.heads), tmp_path), "signature", "is not one over this text")


# --- the form of a receipt --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "receipt",
    [
        b"",
        b"c2sp.org/tlog-proof@v1",
        b"c2sp.org/tlog-proof@v1\nextra e30=\n\nnote",
        b"c2sp.org/tlog-proof@v1\nindex 1\nextra e30=\n\nnote",
        b"c2sp.org/tlog-proof@v2\nextra e30=\nindex 1\n\nnote",
        b"c2sp.org/tlog-proof@v1\nextra e30=\nindex -1\n\nnote",
        b"c2sp.org/tlog-proof@v1\nextra !\nindex 1\n\nnote",
        b"\xff" * 100,
    ],
)
def test_what_is_no_receipt_is_refused(receipt: bytes) -> None:
    with pytest.raises(ValueError, match=r"receipt|type|JSON"):
        parse_receipt(receipt)


def test_a_receipt_of_an_event_is_none(log: Log) -> None:
    head, note = receipt_of(log.prove()).head, b"note"
    assert head is not None
    event = build_event("key.created", actor="a", subject="b", sha256=None, ts_db=1)
    with pytest.raises(ValueError, match=r"expected a tether\.log\.head/1"):
        parse_receipt(format_receipt(head._replace(leaf_bytes=event), note))
