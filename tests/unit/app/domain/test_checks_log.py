"""The checks of the signature and of the heads: a whole bundle passes, and each lie is found by the check for it."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.domain.bundle import BundleError, LogProof, read_bundle, write_bundle
from app.domain.installation_log import (
    Checkpoint,
    build_event,
    build_head,
    format_checkpoint,
    format_head_line,
)
from app.domain.merkle import RootBuilder, inclusion_proofs, leaf_hash, root
from app.domain.note import sign_note, verifier_key
from app.domain.report import Report
from app.domain.trust import Trust
from app.domain.verify import verify_bundle
from tests.unit.app.domain.synthetic_job import JOB, SyntheticJob, outcomes

ORIGIN = "tether.example/log"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
TRUST = Trust({ORIGIN: (verifier_key(ORIGIN, KEY),)})


def root_at(job: SyntheticJob, size: int) -> str:
    tree = RootBuilder()
    for leaf in job.leaves()[:size]:
        tree.append(leaf_hash(leaf))
    return tree.root().hex()


class Log:
    """A log with two heads of the job among acts of others, as a notary would have made it."""

    def __init__(self, job: SyntheticJob) -> None:
        self.whole = len(job.leaves())
        self.sizes = [3, self.whole]
        self.roots = [root_at(job, size) for size in self.sizes]
        self.previous: list[int | None] = [None, 1]
        self.job = JOB
        self.key = KEY
        self.origin = ORIGIN
        self.places = [1, 3]
        self.others = 3
        """Leaves that are not heads of the job."""
        self.others_say = "b"

    def prove(self) -> LogProof:
        """Return what a bundle has of it."""
        other = build_event("key.created", actor="a", subject=self.others_say, sha256=None, ts_db=1)
        leaves = [other] * (self.others + 2)
        for at, size, of, before in zip(self.places, self.sizes, self.roots, self.previous, strict=True):
            leaves[at] = build_head(
                job=self.job, size=size, root=of, state="running", previous=before, ts_db=2
            )
        hashes = [leaf_hash(leaf) for leaf in leaves]
        proofs = inclusion_proofs(hashes, self.places)
        lines = [
            format_head_line(at, leaves[at], proof) for at, proof in zip(self.places, proofs, strict=True)
        ]
        text = format_checkpoint(Checkpoint(self.origin, len(leaves), root(hashes)))
        return LogProof(sign_note(text, [(self.origin, self.key)]), lines)


@pytest.fixture
def log(job: SyntheticJob) -> Log:
    return Log(job)


def check(job: SyntheticJob, proof: LogProof | None, folder: Path, trust: Trust | None = TRUST) -> Report:
    path = folder / "evidence.zip"
    with path.open("wb") as file:
        write_bundle(file, job=JOB, leaves=job.leaves(), risk_table=job.table, log=proof)
    return verify_bundle(path, trust=trust)


def assert_only(report: Report, name: str, *words: str) -> None:
    """Check that this check failed, alone, and says why."""
    failed = {each.name: each for each in report.checks if each.outcome == "failed"}
    assert list(failed) == [name], report.lines()
    assert all(word in failed[name].detail for word in words), failed[name].detail


def test_a_signed_bundle_verifies(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    report = check(job, log.prove(), tmp_path)
    assert report.ok, report.lines()
    assert (outcomes(report)["signature"], outcomes(report)["heads"]) == ("ok", "ok")
    text = "\n".join(report.lines())
    assert f"the checkpoint of {ORIGIN} is signed by {ORIGIN}+" in text
    assert f"2 heads in the log {ORIGIN} at size 5; every record under its root" in text


def test_without_a_policy_nobody_says_whose_signature_counts(
    job: SyntheticJob, log: Log, tmp_path: Path
) -> None:
    found = outcomes(check(job, log.prove(), tmp_path, trust=None))
    assert (found["signature"], found["heads"]) == ("not checked", "ok")


def test_a_policy_demands_a_signature(job: SyntheticJob, tmp_path: Path) -> None:
    assert_only(check(job, None, tmp_path), "signature", "the bundle has none")


def test_another_key_is_not_trusted(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    log.key = STRANGER
    assert_only(check(job, log.prove(), tmp_path), "signature", "knows no such key")


def test_a_key_under_the_same_id_is_not_enough(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    proof = log.prove()
    forged = proof.checkpoint[:-20] + b"A" * 17 + b"==\n"
    report = check(job, LogProof(forged, proof.heads), tmp_path)
    assert not report.ok
    assert outcomes(report)["signature"] == "failed"


def test_another_log_is_not_trusted(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    log.origin = "tether.example/fork-1"
    assert_only(check(job, log.prove(), tmp_path), "signature", "tether.example/fork-1", "does not name")


def test_a_running_job_may_be_ahead_of_its_last_head(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    size = log.whole - 2
    running = SyntheticJob(job.records[:size], job.table)
    log.sizes, log.roots, log.previous, log.places = [3], [root_at(job, 3)], [None], [2]
    report = check(running, log.prove(), tmp_path)
    assert report.ok, report.lines()
    assert f"all but the last {size - 3} records under its root" in "\n".join(report.lines())


def _resign_with_other_root(log: Log) -> None:
    log.roots[0] = "0" * 64


def _drop_the_first_head(log: Log) -> None:
    for values in (log.sizes, log.roots, log.previous, log.places):
        del values[0]  # type: ignore[attr-defined]


def _end_early(log: Log) -> None:
    for values in (log.sizes, log.roots, log.previous, log.places):
        del values[1]  # type: ignore[attr-defined]


def _be_of_another_job(log: Log) -> None:
    log.job = "ftjob-other"


def _know_more(log: Log) -> None:
    log.sizes[1] += 1


def _shrink(log: Log) -> None:
    log.sizes, log.roots = log.sizes[::-1], log.roots[::-1]


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (_resign_with_other_root, ("root 0000", "over the first 3 records")),
        (_drop_the_first_head, ("names 1 as the job's previous head; here that is None",)),
        (_end_early, ("of a job that ended", "not under the checkpoint")),
        (_be_of_another_job, ("a head of the job ftjob-other",)),
        (_know_more, ("the log knows", "the bundle has")),
        (_shrink, ("not later than the head before it",)),
    ],
)
def test_a_head_that_does_not_fit_is_found(
    job: SyntheticJob, log: Log, tmp_path: Path, lie: Callable[[Log], None], words: tuple[str, ...]
) -> None:
    lie(log)
    assert_only(check(job, log.prove(), tmp_path), "heads", *words)


def test_a_record_rewritten_after_it_was_signed_is_found(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    """Whoever has the database can make a record that is consistent in itself; the signed head remembers."""
    proof = log.prove()
    end = job.records[-1]
    end.body["state"], end.body["error"] = "failed", "training_failed"
    report = check(job, proof, tmp_path)
    assert outcomes(report)["chain"] == outcomes(report)["root"] == "ok"
    assert outcomes(report)["heads"] == "failed"


def test_every_flipped_byte_of_the_proof_is_noticed(job: SyntheticJob, log: Log, tmp_path: Path) -> None:
    proof = log.prove()
    for at in range(len(proof.checkpoint)):
        changed = bytearray(proof.checkpoint)
        changed[at] ^= 1
        assert not check(job, LogProof(bytes(changed), proof.heads), tmp_path).ok, at
    line = proof.heads[0]
    for at in range(len(line)):
        flipped = bytearray(line)
        flipped[at] ^= 1
        if b"\n" not in flipped:
            heads = [bytes(flipped), *proof.heads[1:]]
            assert not check(job, LogProof(proof.checkpoint, heads), tmp_path).ok, at


@pytest.mark.parametrize("member", ["heads.jsonl", "checkpoint.note"])
def test_a_signed_bundle_without_a_member_is_none(
    job: SyntheticJob, log: Log, tmp_path: Path, member: str
) -> None:
    import zipfile

    whole = io.BytesIO()
    write_bundle(whole, job=JOB, leaves=job.leaves(), risk_table=job.table, log=log.prove())
    path = tmp_path / "evidence.zip"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            if info.filename != member:
                new.writestr(info, old.read(info.filename))
    with pytest.raises(BundleError, match=f"without {member}"):
        read_bundle(path)
