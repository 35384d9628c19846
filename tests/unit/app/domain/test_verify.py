"""The verifier: a whole synthetic job passes; each kind of damage fails the check that is there for it."""

import copy
import hashlib
import io
import random
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.domain import ledger, verify
from app.domain.bundle import write_bundle
from app.domain.canonical import canonical_bytes
from app.domain.control_law import compute_alpha, compute_row_beta, mean
from app.domain.merkle import leaf_hash, root

JOB = "ftjob-0b5e"
CRITIC = {"id": "critic-1", "sha256": "c" * 64, "low": -2.5, "high": 3.25}
POLICY = "d" * 64
SAFETY = {
    "method": "adaptive_kl",
    "critic": {"type": "activation", "id": None},
    "beta_min": 0.1,
    "beta_max": 0.99,
    "schedule": "linear",
    "threshold": 0.5,
}
ROWS = 7
BATCH = 3
TRAINING_FILE = b'{"messages": []}\n' * (ROWS + 1)


def make_adapter() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("adapter_config.json"), b"{}")
        archive.writestr(zipfile.ZipInfo("adapter_model.safetensors"), b"weights")
    return buffer.getvalue()


ADAPTER = make_adapter()
ADAPTER_FILES = {
    "adapter_config.json": hashlib.sha256(b"{}").hexdigest(),
    "adapter_model.safetensors": hashlib.sha256(b"weights").hexdigest(),
}


@dataclass
class Record:
    """A leaf before it is hashed, so that a forger can change it and rebuild all that follows."""

    kind: str
    body: dict[str, Any]
    attempt: int
    epoch: int
    header: dict[str, Any] = field(default_factory=dict)


@dataclass
class SyntheticJob:
    """A job as lists that tests damage."""

    records: list[Record]
    table: list[bytes] | None

    def leaves(self) -> list[bytes]:
        result: list[bytes] = []
        prev = ledger.NO_LEAF
        for seq, record in enumerate(self.records):
            header: dict[str, Any] = {
                "job": JOB,
                "seq": seq,
                "attempt": record.attempt,
                "epoch": record.epoch,
                "prev": prev,
                "ts_db": 1_790_000_000_000 + seq,
                "ts_worker": None,
            } | record.header
            result.append(ledger.build_leaf(record.kind, record.body, **header))
            prev = ledger.chain_hash(result[-1])
        return result

    def find(self, kind: str, number: int = 0) -> int:
        """Return the seq of the `number`-th record of a type."""
        return [seq for seq, record in enumerate(self.records) if record.kind == kind][number]


def manifest_of(leaves: list[bytes]) -> dict[str, Any]:
    hashes = [leaf_hash(leaf) for leaf in leaves]
    return {"job": JOB, "size": len(leaves), "root": root(hashes).hex(), "head": hashes[-1].hex()}


def run(
    job: SyntheticJob,
    leaves: list[bytes] | None = None,
    manifest: dict[str, Any] | None = None,
    **files: Path,
) -> verify.Report:
    """Verify a job whose manifest its maker has kept in step, unless another is given."""
    leaves = job.leaves() if leaves is None else leaves
    return verify.verify_contents(manifest or manifest_of(leaves), leaves, job.table, **files)


def outcomes(report: verify.Report) -> dict[str, str]:
    return {check.name: check.outcome for check in report.checks}


def assert_fails(report: verify.Report, name: str, first_bad: int | None, detail: str = "") -> None:
    """Assert that `name` is the first check that failed, that it names this record, and says this."""
    check = next(check for check in report.checks if check.outcome == "failed")
    assert (check.name, check.first_bad) == (name, first_bad), report.lines()
    assert detail in check.detail
    assert not report.ok
    assert report.exit_code == verify.EXIT_CODES[name]


def make_table(
    safety: dict[str, Any], critic: dict[str, Any] | None
) -> tuple[list[bytes], dict[str, object]]:
    """Make a table of rows 0 to 7 without row 4, which was dropped; under a critic with points, row 3 failed."""
    rng = random.Random(3)  # noqa: S311
    rows = []
    for row in (0, 1, 2, 3, 5, 6, 7):
        commitment = ledger.row_commitment(b"key", [row, 1, 2], [0, 1, 1])
        if critic is None:
            rows.append(ledger.unmeasured_row(row, commitment))
        elif critic["low"] is None:
            rows.append(ledger.constant_row(row, commitment, safety["critic"]["s"]))
        else:
            log_odds = None if row == 3 else rng.gauss(0, 4)
            rows.append(
                ledger.measured_row(row, commitment, log_odds, low=critic["low"], high=critic["high"])
            )
    points = critic or {"sha256": None, "low": None, "high": None}
    return ledger.build_risk_table(
        rows, dropped=1, critic_sha256=points["sha256"], low=points["low"], high=points["high"]
    )


def make_step(
    step: int,
    data_epoch: int,
    rows: Iterable[int],
    risks: dict[int, float | None],
    safety: dict[str, Any],
    critic: dict[str, Any] | None,
    floor: float = 0.0,
) -> dict[str, Any]:
    rows = list(rows)
    betas = [compute_row_beta(safety, risks[row], floor) for row in rows]
    alphas = [compute_alpha(beta) for beta in betas]
    known = [s for s in (risks[row] for row in rows) if s is not None]
    return {
        "step": step,
        "data_epoch": data_epoch,
        "rows": rows,
        "tokens": 10 + step,
        "risk_mean": mean(known) if known else None,
        "risk_max": max(known) if known else None,
        "alpha_mean": mean(alphas),
        "alpha_min": min(alphas),
        "beta_mean": mean(betas),
        "beta_max": max(betas),
        "floor": floor,
        "nll": 2.5 / step,
        "kl": float("nan") if step == 2 else 0.01 * step,
        "loss": 1.5 / step,
        "token_accuracy": 0.5,
        "grad_norm": float("inf") if step == 2 else 1.0,
        "lr": 1e-4,
        "critic_sha256": critic and critic["sha256"],
        "policy_sha256": POLICY,
    }


def make_job(
    safety: dict[str, Any] | None = None, critic: dict[str, Any] | None = CRITIC, *, crash: bool = True
) -> SyntheticJob:
    """Make a job of 2 data epochs, 6 steps; with `crash`, steps 4 and 5 are lost and done again."""
    safety = safety or SAFETY
    table, table_body = make_table(safety, critic)
    risks = {row.row: row.s for row in map(ledger.parse_risk_row, table)}
    spec = {"n_epochs": 2, "batch_size": BATCH, "learning_rate": 1e-4, "safety": safety}
    steps = []
    for data_epoch in range(2):
        order = sorted(risks)
        random.Random(data_epoch).shuffle(order)  # noqa: S311
        for start in range(0, ROWS, BATCH):
            step = len(steps) + 1
            floor = 0.25 if step == 5 else 0.0
            steps.append(
                make_step(step, data_epoch, order[start : start + BATCH], risks, safety, critic, floor)
            )
    environment = {"python": "3.11.7", "torch": "2.10.0+cpu"}
    start = {
        "from_step": 0,
        "checkpoint_sha256": None,
        "spec": spec,
        "environment": environment,
        "device": "cpu",
    }
    asked = {"hyperparameters": {"n_epochs": "auto"}, "safety": safety}
    created = {
        "spec": asked,
        "spec_sha256": ledger.digest_of(asked),
        "training_sha256": hashlib.sha256(TRAINING_FILE).hexdigest(),
        "training_rows": ROWS + 1,
        "validation_sha256": None,
        "base_model": "miniature-1",
        "base_model_sha256": "a" * 64,
        "critic": critic,
        "policy_sha256": POLICY,
        "actor": "key-77",
    }
    files = {"adapter.safetensors": "b" * 64, "trainer.json": "e" * 64}
    checkpoint = {"step": 3, "kind": "resume", "sha256": ledger.digest_of(files), "files": files}
    records = [
        Record("job.created", created, 0, 0),
        Record("job.start", start, 1, 1),
        Record("risk.table", table_body, 1, 1),
        *(Record("step", body, 1, 1) for body in steps[:3]),
        Record("ckpt", checkpoint, 1, 1),
    ]
    last = (1, 1)
    if crash:
        resume = start | {"from_step": 3, "checkpoint_sha256": checkpoint["sha256"]}
        records += [Record("step", body | {"nll": 9.0}, 1, 1) for body in steps[3:5]]
        records += [Record("cmd", {"command": "resume", "actor": "key-77"}, 1, 2)]
        records += [Record("job.resume", resume, 2, 3)]
        last = (2, 3)
    records += [Record("step", body, *last) for body in steps[3:]]
    published = {
        "step": 6,
        "zip_sha256": hashlib.sha256(ADAPTER).hexdigest(),
        "bytes": len(ADAPTER),
        "files": ADAPTER_FILES,
    }
    tokens = sum(body["tokens"] for body in steps)
    end = {"state": "succeeded", "error": None, "steps": 6, "trained_tokens": tokens}
    records += [Record("adapter.published", published, *last), Record("job.end", end, *last)]
    return SyntheticJob(copy.deepcopy(records), table)


@pytest.fixture
def job() -> SyntheticJob:
    return make_job()


# --- what must pass ---------------------------------------------------------------------------------------


def test_a_complete_job_with_crash_and_resume_verifies(job: SyntheticJob, tmp_path: Path) -> None:
    bundle, adapter, data = tmp_path / "evidence.zip", tmp_path / "adapter.zip", tmp_path / "train.jsonl"
    adapter.write_bytes(ADAPTER)
    data.write_bytes(TRAINING_FILE)
    with bundle.open("wb") as file:
        write_bundle(file, job=JOB, leaves=job.leaves(), risk_table=job.table)
    report = verify.verify_bundle(bundle, adapter=adapter, data=data)
    assert outcomes(report) == dict.fromkeys(verify.CHECKS, "ok") | {"signature": "not checked"}
    assert report.ok
    assert (report.exit_code, report.job, report.state) == (0, JOB, "succeeded")
    text = "\n".join(report.lines())
    assert "this form is unsigned" in text
    assert "1 resume, 2 superseded steps" in text
    assert "protection: adaptive_kl, beta_min 0.1, beta_max 0.99" in text
    assert len(report.lines()) == len(verify.CHECKS) + 3
    canonical_bytes(report.to_dict())
    assert report.to_dict()["ok"] is True


def test_what_is_not_given_is_not_checked(job: SyntheticJob) -> None:
    report = run(job)
    assert report.ok
    assert outcomes(report)["adapter"] == outcomes(report)["training file"] == "not checked"


CONSTANT = {"id": "constant", "sha256": "f" * 64, "low": None, "high": None}


@pytest.mark.parametrize(
    ("safety", "critic"),
    [
        (SAFETY | {"schedule": "threshold"}, CRITIC),
        (SAFETY | {"beta_min": 0, "beta_max": 1}, CRITIC),
        (SAFETY | {"critic": {"type": "constant", "s": 0.3}}, CONSTANT),
        ({"method": "fixed_kl", "beta": 0.5, "critic": None}, None),
        ({"method": "fixed_kl", "beta": 0.5, "critic": None}, CRITIC),
        ({"method": "none", "critic": None}, None),
        ({"method": "none", "critic": None}, CRITIC),
    ],
)
def test_jobs_of_every_method_verify(safety: dict[str, Any], critic: dict[str, Any] | None) -> None:
    report = run(make_job(safety, critic))
    assert report.ok, report.lines()
    assert ("UNPROTECTED" in report.protection) is (safety["method"] == "none")


def test_a_penalty_that_is_always_zero_is_no_protection() -> None:
    report = run(make_job({"method": "fixed_kl", "beta": 0, "critic": None}))
    assert report.ok
    assert "UNPROTECTED" in report.protection


def test_every_beginning_of_a_job_verifies_as_a_job_that_has_not_ended(job: SyntheticJob) -> None:
    for size in range(1, len(job.records)):
        table = job.table if size > job.find("risk.table") else None
        report = run(SyntheticJob(job.records[:size], table))
        assert report.ok, report.lines()
        assert (outcomes(report)["end"], report.state) == ("not checked", None)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_job_that_fails_early_verifies(job: SyntheticJob, size: int) -> None:
    tokens = sum(record.body["tokens"] for record in job.records[:size] if record.kind == "step")
    end = {"state": "failed", "error": "training_failed", "steps": max(0, size - 3), "trained_tokens": tokens}
    # The reconciler took over: attempt 2 was claimed, but never wrote a record of its own.
    job.records[size:] = [Record("job.end", end, 2, 3)]
    job.table = job.table if size > 2 else None
    report = run(job)
    assert report.ok, report.lines()
    assert report.state == "failed"


def test_a_resume_from_nothing_starts_again_from_step_0(job: SyntheticJob) -> None:
    seq = job.find("job.resume")
    job.records[seq].body |= {"from_step": 0, "checkpoint_sha256": None}
    again = [Record("step", record.body, 2, 3) for record in job.records[3:6]]
    job.records[seq + 1 : seq + 1] = again
    report = run(job)
    assert report.ok, report.lines()
    assert "5 superseded steps" in "\n".join(report.lines())


# --- damage by somebody who cannot rehash -----------------------------------------------------------------


def test_an_edited_number_breaks_the_chain_at_the_next_record(job: SyntheticJob) -> None:
    before = job.leaves()
    job.records[4].body["nll"] = 0.125
    edited = [*before[:4], job.leaves()[4], *before[5:]]
    report = run(job, edited, manifest_of(before))
    assert_fails(report, "chain", 5)
    assert outcomes(report)["root"] == "failed"


def test_an_edited_last_record_is_not_under_the_root(job: SyntheticJob) -> None:
    before = job.leaves()
    job.records[-1].header["ts_db"] = 5
    report = run(job, job.leaves(), manifest_of(before))
    assert_fails(report, "root", None, "root is")


@pytest.mark.parametrize("seq", [0, 4, 9])
def test_a_dropped_leaf_is_a_hole_in_the_sequence(job: SyntheticJob, seq: int) -> None:
    leaves = job.leaves()
    report = run(job, leaves[:seq] + leaves[seq + 1 :], manifest_of(leaves))
    assert_fails(report, "sequence", seq)
    assert outcomes(report)["chain"] == outcomes(report)["root"] == "failed"


def test_two_swapped_leaves_are_out_of_sequence(job: SyntheticJob) -> None:
    leaves = job.leaves()
    swapped = [*leaves[:3], leaves[4], leaves[3], *leaves[5:]]
    assert_fails(run(job, swapped, manifest_of(leaves)), "sequence", 3)


def test_reversed_leaves_are_out_of_sequence(job: SyntheticJob) -> None:
    leaves = job.leaves()
    assert_fails(run(job, leaves[::-1], manifest_of(leaves)), "sequence", 0)


def test_a_truncated_ledger_is_not_the_manifests(job: SyntheticJob) -> None:
    leaves = job.leaves()
    assert_fails(run(job, leaves[:-2], manifest_of(leaves)), "root", None, "size")


def test_a_duplicated_leaf_is_out_of_sequence(job: SyntheticJob) -> None:
    leaves = job.leaves()
    assert_fails(run(job, [*leaves[:5], leaves[4], *leaves[5:]], manifest_of(leaves)), "sequence", 5)


@pytest.mark.parametrize("name", ["size", "root", "head"])
def test_a_changed_manifest_does_not_fit(job: SyntheticJob, name: str) -> None:
    manifest = manifest_of(job.leaves())
    manifest[name] = 1 if name == "size" else "0" * 64
    assert_fails(run(job, manifest=manifest), "root", None, name)


def test_a_manifest_of_another_job_does_not_fit(job: SyntheticJob) -> None:
    leaves = job.leaves()
    assert_fails(run(job, leaves, manifest_of(leaves) | {"job": "ftjob-other"}), "sequence", 0)


@pytest.mark.parametrize(
    ("damage", "detail"),
    [
        (lambda leaf: leaf + b" ", "canonical"),
        (lambda leaf: leaf.replace(b'"seq":4', b'"seq":4.0'), "canonical"),
        (lambda leaf: leaf.replace(b'"seq":4', b'"seq":true'), "integer"),
        (lambda leaf: leaf.replace(b"tether.step/1", b"tether.step/2"), "not known"),
        (lambda leaf: leaf.replace(b'"nll":', b'"nlm":'), "has no 'nll'"),
        (lambda leaf: leaf[:-1] + b',"z":1}', "unknown field"),
        (lambda leaf: leaf.replace(b'"beta_max":0', b'"beta_max":3'), "from 0 to 1"),
        (lambda leaf: b"[" + leaf + b"]", "no object"),
        (lambda leaf: b"", "not JSON"),
        (lambda leaf: b"\xff", "UTF-8"),
        (lambda leaf: b"[" * 60_000, "nested"),
        (lambda leaf: b'"' + b"a" * 70_000 + b'"', "65535"),
    ],
)
def test_a_record_that_cannot_be_read_stops_everything(
    job: SyntheticJob, damage: Callable[[bytes], bytes], detail: str
) -> None:
    leaves = job.leaves()
    damaged = damage(leaves[4])
    assert damaged != leaves[4]
    report = run(job, [*leaves[:4], damaged, *leaves[5:]], manifest_of(leaves))
    assert_fails(report, "records", 4, detail)
    assert set(outcomes(report).values()) == {"failed", "not checked"}


def test_no_record_at_all_is_a_failure(job: SyntheticJob) -> None:
    manifest = manifest_of(job.leaves())
    assert_fails(run(job, [], manifest), "records", 0)


def test_every_flipped_byte_of_the_leaves_is_noticed(tmp_path: Path) -> None:
    job = make_job(crash=False)
    end = {"state": "cancelled", "error": None, "steps": 1, "trained_tokens": 11}
    job.records[4:] = [Record("job.end", end, 1, 1)]
    leaves = job.leaves()
    lines = b"".join(leaf + b"\n" for leaf in leaves)
    manifest = manifest_of(leaves)
    assert run(job, lines.splitlines(), manifest).ok
    for position in range(len(lines)):
        flipped = bytearray(lines)
        flipped[position] ^= 1 << position % 8
        records = bytes(flipped).split(b"\n")
        report = run(job, records[:-1] if not records[-1] else records, manifest)
        assert not report.ok, position


# --- forgery by somebody who rehashes everything ----------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["risk_mean", "risk_max", "alpha_mean", "alpha_min", "beta_mean", "beta_max", "floor"]
)
def test_a_changed_control_number_does_not_replay(job: SyntheticJob, name: str) -> None:
    seq = job.find("step", 1)
    value = job.records[seq].body[name]
    # The last bit of a double is enough.
    job.records[seq].body[name] = 1.0 if name == "floor" else value + (-(2**-53) if value > 0.5 else 2**-53)
    assert_fails(run(job), "control law", seq)


@pytest.mark.parametrize(
    ("name", "value"), [("critic_sha256", "0" * 64), ("policy_sha256", "0" * 64), ("risk_max", None)]
)
def test_a_step_under_another_critic_or_policy_fails(job: SyntheticJob, name: str, value: object) -> None:
    seq = job.find("step", 2)
    job.records[seq].body[name] = value
    assert_fails(run(job), "control law", seq, name)


def test_a_superseded_step_is_replayed_too(job: SyntheticJob) -> None:
    seq = job.find("step", 4)
    job.records[seq].body["beta_max"] = 0.5
    assert_fails(run(job), "control law", seq)


def test_a_row_outside_the_table_fails(job: SyntheticJob) -> None:
    seq = job.find("step")
    job.records[seq].body["rows"][0] = 4
    assert_fails(run(job), "control law", seq, "row 4 is not in the risk table")


@pytest.mark.parametrize(
    ("safety", "detail"),
    [
        ({"method": "antidote"}, "not known"),
        ({"beta_max": 1.5}, "safety.beta_max"),
        ({"beta_min": True}, "safety.beta_min"),
        ({"threshold": None}, "safety.threshold"),
        ({"schedule": "cubic"}, "unknown schedule"),
        ({"schedule": 3}, "safety.schedule"),
        ({"beta_max": 0.9}, "replay"),
    ],
)
def test_a_spec_that_the_control_law_does_not_know_fails(
    job: SyntheticJob, safety: dict[str, Any], detail: str
) -> None:
    forge_spec(job, {"safety": SAFETY | safety})
    assert_fails(run(job), "control law", 3, detail)


def forge_spec(job: SyntheticJob, change: dict[str, Any]) -> None:
    for record in job.records:
        if "spec" in record.body:
            record.body["spec"] = record.body["spec"] | change
        if "spec_sha256" in record.body:
            record.body["spec_sha256"] = ledger.digest_of(record.body["spec"])


def forge_row(job: SyntheticJob, number: int, change: dict[str, Any], *, commit: bool = False) -> None:
    """Change one entry of the risk table; with `commit`, its leaf too."""
    assert job.table is not None
    entry = {**vars_of(job.table[number]), **change}
    job.table[number] = canonical_bytes(entry)
    if commit:
        body = job.records[job.find("risk.table")].body
        body["root"] = root(map(leaf_hash, job.table)).hex()


def vars_of(entry: bytes) -> dict[str, Any]:
    row = ledger.parse_risk_row(entry)
    return {name: getattr(row, name) for name in ("row", "commitment", "log_odds", "s", "status")}


@pytest.mark.parametrize("commit", [False, True])
@pytest.mark.parametrize(
    ("number", "change", "detail"),
    [
        (1, {"s": 0.0123}, "its record gives"),
        (1, {"s": None}, "only unmeasured rows"),
        (1, {"log_odds": -40}, "its record gives"),
        (1, {"log_odds": "NaN"}, "a number"),
        (3, {"s": 0}, "s must be 1"),
        (3, {"status": "ok"}, "has a reading"),
        (1, {"status": "failed", "log_odds": None, "s": 0}, "s must be 1"),
        (1, {"status": "constant", "log_odds": None, "s": 0}, "under this critic"),
        (1, {"status": "unmeasured", "log_odds": None, "s": None}, "under this critic"),
        (1, {"row": 0}, "comes after"),
    ],
)
def test_a_forged_row_of_the_risk_table_is_named(
    job: SyntheticJob, number: int, change: dict[str, Any], detail: str, commit: bool
) -> None:
    forge_row(job, number, change, commit=commit)
    report = run(job)
    assert_fails(report, "risk table", number, detail)
    assert next(c for c in report.checks if c.name == "risk table").first_bad_in == "risk_table.jsonl"
    assert outcomes(report)["control law"] == "not checked"


def test_a_changed_commitment_is_not_under_the_recorded_root(job: SyntheticJob) -> None:
    forge_row(job, 2, {"commitment": "0" * 64})
    assert_fails(run(job), "risk table", 2, "root")


@pytest.mark.parametrize(
    ("name", "value", "detail"),
    [
        ("rows", 6, "rows"),
        ("dropped", 0, "of the file"),
        ("root", "0" * 64, "root"),
        ("critic_sha256", "0" * 64, "created with"),
        ("critic_sha256", None, "created with"),
        ("low", -9.5, "created with"),
        ("high", None, "created with"),
        ("counts", {"ok": 7, "failed": 0, "constant": 0, "unmeasured": 0}, "counts"),
    ],
)
def test_a_forged_risk_table_record_is_named(
    job: SyntheticJob, name: str, value: object, detail: str
) -> None:
    seq = job.find("risk.table")
    job.records[seq].body[name] = value
    assert_fails(run(job), "risk table", seq, detail)


def test_a_row_dropped_from_the_table_and_its_counts_is_missed(job: SyntheticJob) -> None:
    assert job.table is not None
    del job.table[-1]
    body = job.records[job.find("risk.table")].body
    body["rows"], body["root"] = 6, root(map(leaf_hash, job.table)).hex()
    body["counts"] = body["counts"] | {"ok": 5}
    assert_fails(run(job), "risk table", job.find("risk.table"), "are not the 8 of the file")


def test_the_risk_table_and_its_record_need_each_other(job: SyntheticJob) -> None:
    table, job.table = job.table, None
    assert_fails(run(job), "risk table", job.find("risk.table"), "no risk_table.jsonl")
    assert_fails(run(SyntheticJob(job.records[:2], table)), "risk table", None, "no record commits")


def test_a_job_that_steers_by_risk_needs_a_critic() -> None:
    job = make_job({"method": "none", "critic": None}, None)
    forge_spec(job, {"safety": SAFETY})
    assert_fails(run(job), "risk table", 0, "no critic measured any")


def test_a_constant_critics_s_is_the_specs() -> None:
    job = make_job(SAFETY | {"critic": {"type": "constant", "s": 0.3}}, CONSTANT)
    forge_spec(job, {"safety": SAFETY | {"critic": {"type": "constant", "s": 0.2}}})
    assert_fails(run(job), "risk table", 0, "s 0.3; its record gives 0.2")
    forge_spec(job, {"safety": SAFETY})
    assert_fails(run(job), "risk table", 0, "no constant critic")


# --- order ------------------------------------------------------------------------------------------------


def step_of(job: SyntheticJob, number: int) -> Record:
    return copy.deepcopy(job.records[job.find("step", number)])


@pytest.mark.parametrize(
    ("damage", "first_bad", "detail"),
    [
        (lambda job: job.records.pop(0), 0, "job.created is the first"),
        (lambda job: job.records.insert(3, job.records[0]), 3, "job.created is the first"),
        (lambda job: job.records.insert(3, job.records[-1]), 4, "after job.end"),
        (lambda job: job.records.append(job.records[3]), 16, "after job.end"),
        (lambda job: job.records.pop(1), 1, "before job.start"),
        (lambda job: job.records.insert(1, job.records[10]), 1, "before job.start"),
        (lambda job: job.records.insert(4, job.records[1]), 4, "second job.start"),
        (lambda job: job.records.insert(3, job.records[2]), 3, "second risk.table"),
        (lambda job: job.records.pop(2), 2, "before the risk.table"),
        (lambda job: job.records[1].body.update(from_step=1), 1, "begins from a checkpoint"),
        (lambda job: job.records[6].body.update(sha256="0" * 64), 6, "digest of files"),
        (lambda job: job.records[0].body.update(spec_sha256="0" * 64), 0, "digest of spec"),
        (lambda job: job.records[10].body.update(spec={"safety": SAFETY}), 10, "not that of job.start"),
    ],
)
def test_records_in_an_order_that_no_job_has_fail(
    job: SyntheticJob, damage: Callable[[SyntheticJob], object], first_bad: int, detail: str
) -> None:
    damage(job)
    assert_fails(run(job), "grammar", first_bad, detail)


def test_a_worker_that_quietly_weakens_the_safety_asked_for_is_noticed() -> None:
    job = make_job({"method": "none", "critic": None}, CRITIC)
    asked = job.records[0].body
    asked["spec"] = {"safety": SAFETY}
    asked["spec_sha256"] = ledger.digest_of(asked["spec"])
    report = run(job)
    assert_fails(report, "grammar", 1, "contradicts what job.created asked for: safety.")
    assert "UNPROTECTED" in report.protection


@pytest.mark.parametrize(
    ("damage", "first_bad", "detail"),
    [
        # A hole before the resume, one after it, a step done twice.
        (lambda job: job.records.pop(4), 4, "step 3 follows step 1"),
        (lambda job: job.records.pop(12), 12, "step 6 follows step 4"),
        (lambda job: job.records.insert(6, step_of(job, 2)), 6, "step 3 follows step 3"),
        (lambda job: job.records.pop(10), 10, "written under attempt 2"),
        (lambda job: job.records[10].body.update(from_step=2), 10, "no standing record"),
        (lambda job: job.records[10].body.update(from_step=6), 10, "step 5 is the last"),
        (lambda job: job.records[10].body.update(checkpoint_sha256=None), 10, "no standing record"),
        (lambda job: job.records[10].body.update(checkpoint_sha256="0" * 64), 10, "no standing record"),
        (lambda job: job.records.pop(6), 9, "no standing record"),
        (lambda job: job.records[6].body.update(step=4), 6, "ckpt of step 4"),
        (lambda job: job.records[14].body.update(step=7), 14, "adapter.published of step 7"),
        (lambda job: setattr(job.records[0], "attempt", 1), 0, "has attempt 1"),
        (lambda job: setattr(job.records[1], "attempt", 0), 1, "no new attempt"),
        (lambda job: setattr(job.records[10], "attempt", 1), 10, "no new attempt"),
        (lambda job: setattr(job.records[10], "epoch", 1), 10, "epoch falls from 2 to 1"),
        (lambda job: setattr(job.records[15], "attempt", 1), 15, "attempt falls"),
        # The old worker wakes up after it was fenced, or goes on under an epoch that was not its own.
        (lambda job: job.records.insert(10, step_of(job, 4)), 10, "epoch falls from 2 to 1"),
        (lambda job: setattr(job.records[7], "epoch", 2), 7, "written under attempt 1, epoch 2"),
    ],
)
def test_attempts_that_do_not_join_up_fail(
    job: SyntheticJob, damage: Callable[[SyntheticJob], object], first_bad: int, detail: str
) -> None:
    damage(job)
    assert_fails(run(job), "attempts", first_bad, detail)


def test_a_checkpoint_of_superseded_steps_cannot_be_resumed_from(job: SyntheticJob) -> None:
    files = {"adapter.safetensors": "9" * 64}
    late = {"step": 5, "kind": "resume", "sha256": ledger.digest_of(files), "files": files}
    job.records.insert(9, Record("ckpt", late, 1, 1))
    again = copy.deepcopy(job.records[job.find("job.resume")])
    again.attempt, again.epoch = 3, 4
    again.body |= {"from_step": 5, "checkpoint_sha256": late["sha256"]}
    job.records[14:] = [again]
    assert run(SyntheticJob(job.records[:14], job.table)).ok
    assert_fails(run(job), "attempts", 14, "no standing record")


# --- coverage, end and files ------------------------------------------------------------------------------


def retrain(job: SyntheticJob, seq: int, rows: list[int]) -> None:
    """Forge a step with other rows so that it replays."""
    assert job.table is not None
    risks = {row.row: row.s for row in map(ledger.parse_risk_row, job.table)}
    body = job.records[seq].body
    job.records[seq].body = make_step(
        body["step"], body["data_epoch"], rows, risks, SAFETY, CRITIC, body["floor"]
    )


def test_a_row_trained_on_twice_is_named(job: SyntheticJob) -> None:
    seq = job.find("step", 1)
    rows = [job.records[seq - 1].body["rows"][0], *job.records[seq].body["rows"][1:]]
    retrain(job, seq, rows)
    assert_fails(run(job), "coverage", seq, f"row {rows[0]} is trained on twice")


def test_a_row_left_out_of_a_data_epoch_is_named(job: SyntheticJob) -> None:
    seq = job.find("step", 0)
    left_out, *rows = job.records[seq].body["rows"]
    retrain(job, seq, rows)
    assert_fails(run(job), "coverage", job.find("step", 2), f"row {left_out}")


def test_a_row_left_out_of_the_last_data_epoch_is_named(job: SyntheticJob) -> None:
    seq = job.find("step", 6)
    retrain(job, seq, job.records[seq].body["rows"][1:])
    assert_fails(run(job), "coverage", job.find("step", 7))


def test_a_skipped_data_epoch_and_a_wrong_number_of_them_are_named(job: SyntheticJob) -> None:
    forge_spec(job, {"n_epochs": 3})
    assert_fails(run(job), "coverage", job.find("step", 7), "the spec says 3")
    forge_spec(job, {"n_epochs": None})
    assert_fails(run(job), "coverage", job.find("step", 7), "the spec says None")
    job.records[job.find("step", 0)].body["data_epoch"] = 1
    assert_fails(run(job), "coverage", job.find("step", 0), "data epoch 1 where 0")


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"steps": 5}, "steps 5"),
        ({"trained_tokens": 1}, "trained_tokens 1"),
        ({"error": "training_failed"}, "succeeded with the error"),
        ({"state": "failed"}, "failed with the error None"),
    ],
)
def test_an_end_that_the_steps_contradict_fails(
    job: SyntheticJob, change: dict[str, Any], detail: str
) -> None:
    job.records[-1].body |= change
    assert_fails(run(job), "end", len(job.records) - 1, detail)


def test_success_needs_an_adapter_of_the_last_step(job: SyntheticJob) -> None:
    job.records[-2].body["step"] = 5
    assert_fails(run(job), "end", len(job.records) - 1, "no adapter of its last step")
    job.records.pop(-2)
    assert_fails(run(job), "end", len(job.records) - 1, "no adapter of its last step")


def test_another_adapter_or_training_file_is_noticed(job: SyntheticJob, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(ADAPTER[:-1] + b"\x01")
    assert_fails(run(job, adapter=path), "adapter", None, "SHA-256")
    assert_fails(run(job, data=path), "training file", None, "SHA-256")
    assert_fails(run(job, adapter=tmp_path), "adapter", None, "cannot be read")
    assert_fails(run(job, data=tmp_path / "absent"), "training file", None, "cannot be read")


def test_an_adapter_must_hold_the_recorded_files(job: SyntheticJob, tmp_path: Path) -> None:
    path = tmp_path / "adapter.zip"
    path.write_bytes(ADAPTER)
    job.records[-2].body["bytes"] += 1
    assert_fails(run(job, adapter=path), "adapter", None, "bytes")
    job.records[-2].body["bytes"] -= 1
    job.records[-2].body["files"]["adapter_config.json"] = "0" * 64
    assert_fails(run(job, adapter=path), "adapter", None, "'adapter_config.json'")
    del job.records[-2].body["files"]["adapter_config.json"]
    assert_fails(run(job, adapter=path), "adapter", None, "'adapter_config.json'")


@pytest.mark.parametrize("content", [b"no zip", b"PK\x05\x06" + b"\xff" * 18])
def test_an_adapter_that_is_no_zip_is_a_failed_check(
    job: SyntheticJob, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "adapter.zip"
    path.write_bytes(content)
    job.records[-2].body |= {"zip_sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert_fails(run(job, adapter=path), "adapter", None, "cannot be read")


def test_an_adapter_without_a_record_fails(job: SyntheticJob, tmp_path: Path) -> None:
    path = tmp_path / "adapter.zip"
    path.write_bytes(ADAPTER)
    job.records[:] = job.records[:8]
    assert_fails(run(job, adapter=path), "adapter", None, "none published")


# --- bundles ----------------------------------------------------------------------------------------------


def test_a_bundle_that_cannot_be_read_is_a_report(tmp_path: Path) -> None:
    report = verify.verify_bundle(tmp_path / "absent.zip")
    assert_fails(report, "records", None, "cannot be read")
    assert len(report.lines()) == len(verify.CHECKS) + 3
    canonical_bytes(report.to_dict())


def test_a_bundle_damaged_anywhere_never_raises_and_never_passes_changed_records(
    job: SyntheticJob, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    write_bundle(buffer, job=JOB, leaves=job.leaves(), risk_table=job.table)
    whole = buffer.getvalue()
    path = tmp_path / "evidence.zip"
    rng = random.Random(1)  # noqa: S311
    failed = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 4])):
            # Half of the hits go where the zip's own structure lies, at the end.
            start = rng.choice([0, len(whole) - 300])
            damaged[rng.randrange(start, len(whole))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.randrange(len(whole))] if rng.random() < 0.1 else damaged)
        report = verify.verify_bundle(path)
        failed += not report.ok
        if report.ok:
            # A byte of the zip that means nothing, such as a time stamp; what was verified is unchanged.
            assert report.root == manifest_of(job.leaves())["root"]
    assert failed > 250
