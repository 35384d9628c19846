"""The check of what is missing from a pruned bundle, and what every other check then says."""

import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.domain.bundle import PROVENANCE, LogProof, read_bundle, write_bundle
from app.domain.canonical import canonical_bytes, parse_canonical
from app.domain.installation_log import (
    Checkpoint,
    build_event,
    build_head,
    format_checkpoint,
    format_head_line,
)
from app.domain.ledger import kind_of, parse_leaf
from app.domain.merkle import inclusion_proofs, leaf_hash, root
from app.domain.note import sign_note, verifier_key
from app.domain.report import CHECKS, EXIT_CODES, Report
from app.domain.retention import (
    PRUNED_EVENT,
    RECORDS,
    STEPS,
    PrunedTree,
    build_pruning,
    digest_of_pruning,
    format_pruned,
    format_pruning_line,
    is_pruned_in,
    parse_pruned,
)
from app.domain.trust import Trust
from app.domain.verify import verify_bundle
from tests.unit.app.domain.synthetic_job import (
    ADAPTER,
    JOB,
    TRAINING_FILE,
    SyntheticJob,
    manifest_of,
    outcomes,
)
from tests.unit.app.domain.synthetic_run import make_run
from tests.unit.app.domain.test_checks_log import STRANGER
from tests.unit.app.domain.test_checks_provenance import CANARY, pack, publish, set_in, sign, state

EARLY = pack(canary=CANARY | {"tuned": [-2.0, -2.0]})[0]
FORGED = pack(canary=CANARY | {"tuned": [-9.0, -9.0]})[0]
ORIGIN = "tether.example/log"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
TRUST = Trust({ORIGIN: (verifier_key(ORIGIN, KEY),)})
NEEDS_NO_RECORD = (
    "records",
    "sequence",
    "chain",
    "root",
    "signature",
    "training file",
    "lineage",
    "heads",
    "retention",
)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Pruned:
    """A job that was pruned, the log that says so, and places where a test can lie."""

    def __init__(self, job: SyntheticJob, scope: str) -> None:
        self.table = job.table if scope == STEPS else None
        self.lines = job.leaves()
        self.head = root(map(leaf_hash, self.lines)).hex()
        self.scope = scope
        self.counts: Counter[str] = Counter()
        self.tree = PrunedTree()
        for seq, leaf in enumerate(self.lines):
            kind = kind_of(parse_leaf(leaf))
            if is_pruned_in(scope, kind):
                self.take(seq)
                self.tree.append(seq, leaf_hash(leaf))
                self.counts[kind] += 1
        self.event: dict[str, Any] = {"event": PRUNED_EVENT, "subject": JOB}
        self.sha256: str | None = None
        self.change: Callable[[dict[str, Any]], object] = lambda pruning: None

    def take(self, seq: int) -> None:
        """Put its hash in the place of a record."""
        self.lines[seq] = format_pruned(leaf_hash(self.lines[seq]))

    def prove(self) -> LogProof:
        """Return what a bundle has of the log."""
        pruning = parse_canonical(
            build_pruning(job=JOB, scope=self.scope, counts=self.counts, tree=self.tree)
        )
        assert isinstance(pruning, dict)
        self.change(pruning)
        pruned = canonical_bytes(pruning)
        sha256 = self.sha256 or digest_of_pruning(pruned)
        other = build_event("key.created", actor="a", subject="b", sha256=None, ts_db=1)
        head = build_head(
            job=JOB, size=len(self.lines), root=self.head, state="succeeded", previous=None, ts_db=2
        )
        event = build_event(
            self.event["event"], actor="x", subject=self.event["subject"], sha256=sha256, ts_db=3
        )
        log = [other, head, other, event, other]
        hashes = [leaf_hash(leaf) for leaf in log]
        proofs = inclusion_proofs(hashes, [1, 3])
        text = format_checkpoint(Checkpoint(ORIGIN, len(log), root(hashes)))
        return LogProof(
            sign_note(text, [(ORIGIN, KEY)]),
            [format_head_line(1, head, proofs[0])],
            format_pruning_line(3, event, proofs[1], pruned),
        )

    def check(self, folder: Path, proof: LogProof | None = None) -> Report:
        """Verify its bundle under a policy, with everything that can lie beside it."""
        path, data, adapter = (folder / name for name in ("evidence.zip", "data.jsonl", "adapter.zip"))
        with path.open("wb") as file:
            write_bundle(file, job=JOB, leaves=self.lines, risk_table=self.table, log=proof or self.prove())
        data.write_bytes(TRAINING_FILE)
        adapter.write_bytes(ADAPTER)
        return verify_bundle(path, data=data, adapter=adapter, trust=TRUST)


@pytest.fixture
def pruned(job: SyntheticJob) -> Pruned:
    return Pruned(job, STEPS)


def assert_fails(report: Report, words: str) -> None:
    """Check that only the check of what is missing failed, and that it says this."""
    failed = [check for check in report.checks if check.outcome == "failed"]
    assert [check.name for check in failed] == ["retention"], report.lines()
    assert words in failed[0].detail, failed[0].detail
    assert report.exit_code == EXIT_CODES["retention"]


def test_without_its_steps_a_job_keeps_tree_signature_and_what_needs_no_step(
    pruned: Pruned, tmp_path: Path
) -> None:
    report = pruned.check(tmp_path)
    found = outcomes(report)
    assert report.ok, report.lines()
    for name in (*NEEDS_NO_RECORD, "risk table", "adapter"):
        assert found[name] == "ok", report.lines()
    for name in ("grammar", "attempts", "control law", "coverage", "end", "sets", "plan"):
        assert found[name] == "not checked", report.lines()
    text = "\n".join(report.lines())
    assert "needs records that were pruned (8 records, by the log)" in text
    assert f"8 records missing, exactly those that the log {ORIGIN} says were pruned" in text
    assert "8 records, canonical and of known types; 8 more were pruned" in text
    assert "protection: adaptive_kl" in text


def test_of_a_job_of_which_only_the_ends_are_left_nothing_is_claimed_but_the_tree(
    job: SyntheticJob, tmp_path: Path
) -> None:
    pruned = Pruned(job, RECORDS)
    report = pruned.check(tmp_path)
    found = outcomes(report)
    assert report.ok, report.lines()
    assert {name for name, outcome in found.items() if outcome == "ok"} == set(NEEDS_NO_RECORD)
    assert {found[name] for name in set(CHECKS) - set(NEEDS_NO_RECORD)} == {"not checked"}
    reasons = {
        check.detail for check in report.checks if check.outcome == "not checked" and check.name != "held"
    }
    assert reasons == {"needs records that were pruned (14 records, by the log)"}
    assert report.state == "succeeded"


class TestStatementAlone:
    """Of the adapter no record is left; what the notary signed about it is in the bundle."""

    @pytest.fixture
    def whole(self) -> SyntheticJob:
        """A job with a statement and the zip of a checkpoint, before it was pruned."""
        job = make_run(version=4)
        publish(job, pack())
        checkpoint = job.records[job.find("ckpt")]
        checkpoint.version, checkpoint.body = 2, checkpoint.body | {"adapter_sha256": _digest(EARLY)}
        return job

    def check(
        self, job: SyntheticJob, folder: Path, envelope: bytes, adapter: bytes, trust: Trust | None = TRUST
    ) -> tuple[Report, str]:
        """Verify the pruned bundle with a zip, and return what the check of the statement says."""
        path, beside = folder / "evidence.zip", folder / "adapter.zip"
        pruned = Pruned(job, RECORDS)
        with path.open("wb") as file:
            write_bundle(
                file,
                job=JOB,
                leaves=pruned.lines,
                risk_table=None,
                log=pruned.prove(),
                documents={PROVENANCE: envelope},
            )
        beside.write_bytes(adapter)
        report = verify_bundle(path, adapter=beside, trust=trust)
        found = next(check for check in report.checks if check.name == "provenance")
        return report, f"{found.outcome}: {found.detail}"

    def test_the_adapter_is_held_against_it(self, whole: SyntheticJob, tmp_path: Path) -> None:
        report, said = self.check(whole, tmp_path, sign(state(whole)), pack()[0])
        assert report.ok, report.lines()
        assert said.startswith(f"ok: the statement is signed by {ORIGIN}+")
        assert "the zip and its files are those that it is about" in said
        assert outcomes(report)["adapter"] == "not checked"

    def test_a_forged_adapter_is_found(self, whole: SyntheticJob, tmp_path: Path) -> None:
        report, said = self.check(whole, tmp_path, sign(state(whole)), FORGED)
        assert said.startswith(f"failed: the zip's SHA-256 is {_digest(FORGED)}; the statement is about")
        assert report.exit_code == EXIT_CODES["provenance"] == 31

    def test_a_checkpoint_is_told(self, whole: SyntheticJob, tmp_path: Path) -> None:
        report, said = self.check(whole, tmp_path, sign(state(whole)), EARLY)
        assert report.ok, report.lines()
        assert "the zip is its checkpoint-step-2.zip, not the adapter" in said

    def test_without_a_policy_nobody_vouches(self, whole: SyntheticJob, tmp_path: Path) -> None:
        said = self.check(whole, tmp_path, sign(state(whole)), pack()[0], trust=None)[1]
        assert said.startswith("not checked: the statement fits the records that are left; the zip")
        assert "no trust policy was given" in said

    @pytest.mark.parametrize(
        ("path", "value", "says"),
        [
            ("subject.0.digest.sha256", "0" * 64, "the statement is about 0000"),
            ("subject.1.digest.sha256", "0" * 64, "other files than the statement is about"),
            ("subject", [1], "not in its form"),
            ("predicate.buildDefinition.externalParameters.actor", "other", "in spec and actor"),
            ("predicate.runDetails.metadata.invocationId", "ftjob-other", "in job"),
            ("predicate.runDetails.byproducts.0.annotations.root", "0" * 64, "in ledger"),
            ("predicate.runDetails.byproducts", [], "not in its form"),
        ],
    )
    def test_one_that_says_something_else_is_found_though_it_is_signed(
        self, whole: SyntheticJob, tmp_path: Path, path: str, value: object, says: str
    ) -> None:
        statement = state(whole)
        set_in(path, value)(statement)
        report, said = self.check(whole, tmp_path, sign(statement), pack()[0])
        assert said.startswith("failed: ")
        assert says in said
        assert report.exit_code == EXIT_CODES["provenance"]

    def test_one_that_nobody_trusted_signed_is_found(self, whole: SyntheticJob, tmp_path: Path) -> None:
        said = self.check(whole, tmp_path, sign(state(whole), STRANGER), pack()[0])[1]
        assert said.startswith("failed: provenance.dsse.json: it is signed by none of the keys")

    def test_one_about_a_job_that_failed_is_found(self, whole: SyntheticJob, tmp_path: Path) -> None:
        statement = state(whole)
        whole.records[-1].body.update(state="failed", error="training_failed")
        ledger = statement["predicate"]["runDetails"]["byproducts"][0]
        manifest = manifest_of(whole.leaves())
        ledger["digest"]["tetherSha256"], ledger["annotations"]["root"] = manifest["head"], manifest["root"]
        said = self.check(whole, tmp_path, sign(statement), pack()[0])[1]
        assert "not one of a job that ended with an adapter" in said


def test_measurements_and_live_scores_go_with_the_steps(tmp_path: Path) -> None:
    pruned = Pruned(make_run(), STEPS)
    assert pruned.counts["step"]
    assert pruned.counts["monitor"]
    report = pruned.check(tmp_path)
    found = outcomes(report)
    assert (found["retention"], found["heads"], found["risk table"]) == ("ok", "ok", "ok")
    # The files that lie beside it are those of another job.
    assert {name for name, outcome in found.items() if outcome == "failed"} == {"training file", "adapter"}


def test_an_unpruned_bundle_misses_nothing(job: SyntheticJob, tmp_path: Path) -> None:
    path = tmp_path / "evidence.zip"
    with path.open("wb") as file:
        write_bundle(file, job=JOB, leaves=job.leaves(), risk_table=job.table)
    report = verify_bundle(path)
    assert outcomes(report)["retention"] == "ok"


def test_one_record_more_missing_than_the_log_says_is_found(pruned: Pruned, tmp_path: Path) -> None:
    kept = next(seq for seq, line in enumerate(pruned.lines) if b'"tether.ckpt/' in line)
    pruned.take(kept)
    assert_fails(pruned.check(tmp_path), "of what was pruned records 8; what is missing has 9")


def test_another_record_missing_than_the_log_says_is_found(
    pruned: Pruned, job: SyntheticJob, tmp_path: Path
) -> None:
    steps = [seq for seq, record in enumerate(job.records) if record.kind == "step"]
    cmd = next(seq for seq, record in enumerate(job.records) if record.kind == "cmd")
    pruned.take(cmd)
    pruned.lines[steps[0]] = job.leaves()[steps[0]]
    report = pruned.check(tmp_path)
    assert_fails(report, "a step that the log says was pruned with all of its kind")


def _be_of_another_job(pruned: Pruned) -> None:
    pruned.event["subject"] = "ftjob-other"


def _be_another_act(pruned: Pruned) -> None:
    pruned.event["event"] = "key.revoked"


def _have_another_digest(pruned: Pruned) -> None:
    pruned.sha256 = "0" * 64


def _name_another_job(pruned: Pruned) -> None:
    pruned.change = lambda pruning: pruning.update(job="ftjob-other")


def _miscount(pruned: Pruned) -> None:
    pruned.change = lambda pruning: pruning["counts"].update(step=9)


def _call_it_otherwise(pruned: Pruned) -> None:
    pruned.change = lambda pruning: pruning.update(counts={"cmd": 8})


def _take_a_step_for_a_measurement(pruned: Pruned) -> None:
    pruned.change = lambda pruning: pruning.update(counts={"step": 5, "monitor": 3})


def _have_another_root(pruned: Pruned) -> None:
    pruned.change = lambda pruning: pruning.update(root="0" * 64)


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (_be_of_another_job, "subject of the log's event is ftjob-other"),
        (_be_another_act, "event of the log's event is key.revoked"),
        (_have_another_digest, "sha256 of the log's event is 0000"),
        (_name_another_job, "the pruning is of the job ftjob-other"),
        (_miscount, "do not add up"),
        (_call_it_otherwise, "a cmd was pruned, which a pruning of the scope steps leaves"),
        (_take_a_step_for_a_measurement, "5 steps were pruned; job.end has 6"),
        (_have_another_root, "of what was pruned root 0000"),
    ],
)
def test_a_log_that_says_something_else_is_found(
    pruned: Pruned, tmp_path: Path, lie: Callable[[Pruned], None], words: str
) -> None:
    lie(pruned)
    assert_fails(pruned.check(tmp_path), words)


def test_an_event_that_the_checkpoint_does_not_cover_is_found(pruned: Pruned, tmp_path: Path) -> None:
    proof = pruned.prove()
    assert proof.pruning is not None
    moved = proof.pruning.replace(b'"index":3', b'"index":2')
    assert_fails(pruned.check(tmp_path, proof._replace(pruning=moved)), "does not lead to the root")


def test_what_cannot_be_read_of_a_pruning_fails_and_blocks_what_it_may_have_taken(
    pruned: Pruned, tmp_path: Path
) -> None:
    report = pruned.check(tmp_path, pruned.prove()._replace(pruning=b'{"pruned":"all"}'))
    assert_fails(report, "what was pruned cannot be read")
    assert outcomes(report)["control law"] == "not checked"


def test_every_flipped_byte_of_the_pruning_is_noticed(pruned: Pruned, tmp_path: Path) -> None:
    proof = pruned.prove()
    line = proof.pruning
    assert line is not None
    for at in range(0, len(line)):
        flipped = bytearray(line)
        flipped[at] ^= 1
        if flipped[at] != 10:
            assert not pruned.check(tmp_path, proof._replace(pruning=bytes(flipped))).ok, at


def test_a_hash_that_is_not_that_of_the_record_breaks_the_tree(pruned: Pruned, tmp_path: Path) -> None:
    seq = next(seq for seq, line in enumerate(pruned.lines) if parse_pruned(line))
    pruned.lines[seq] = format_pruned(bytes(32))
    found = outcomes(pruned.check(tmp_path))
    assert found["heads"] == "failed"
    assert found["retention"] == "failed"


@pytest.mark.parametrize("at", [0, -1])
def test_first_and_last_record_are_never_pruned(pruned: Pruned, tmp_path: Path, at: int) -> None:
    pruned.take(range(len(pruned.lines))[at])
    assert not pruned.check(tmp_path).ok


def test_a_hash_in_a_bundle_of_another_form_is_no_record(
    pruned: Pruned, job: SyntheticJob, tmp_path: Path
) -> None:
    """As a verifier from before the pruned form does, and as this one does where the form does not say so."""
    whole = io.BytesIO()
    write_bundle(whole, job=JOB, leaves=pruned.lines, risk_table=job.table, log=pruned.prove())
    path = tmp_path / "evidence.zip"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            data = old.read(info.filename).replace(b"tether.bundle/3", b"tether.bundle/2")
            if info.filename == "heads.jsonl":
                data = b"".join(data.splitlines(keepends=True)[:-1])
            new.writestr(info, data)
    with read_bundle(path) as bundle:
        assert bundle.manifest["format"] == "tether.bundle/2"
    report = verify_bundle(path, trust=TRUST)
    assert (report.checks[0].outcome, report.checks[0].first_bad) == ("failed", 3), report.lines()


def test_a_pruned_record_is_written_only_where_the_log_says_so(pruned: Pruned) -> None:
    unsaid = io.BytesIO()
    write_bundle(unsaid, job=JOB, leaves=pruned.lines, risk_table=None)
    with zipfile.ZipFile(unsaid) as archive:
        assert pruned.head not in archive.read("manifest.json").decode()
