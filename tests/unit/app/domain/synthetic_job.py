"""A whole job made up for the tests of the verifier, which damage it and see which check fails.

Its records are of the first version of each type, as bundles have them that were handed out long ago; `synthetic_run`
has the newest.
"""

import copy
import hashlib
import io
import random
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.domain import ledger, risk_table, verify
from app.domain.canonical import canonical_bytes
from app.domain.control_law import compute_alpha, compute_row_beta, mean
from app.domain.merkle import leaf_hash, root
from app.domain.report import EXIT_CODES, Report

JOB = "ftjob-0b5e"
CRITIC = {"id": "critic-1", "sha256": "c" * 64, "low": -2.5, "high": 3.25}
CONSTANT = {"id": "constant", "sha256": "f" * 64, "low": None, "high": None}
POLICY = "d" * 64
SAFETY = {
    "method": "adaptive_kl",
    "critic": {"type": "activation", "id": None},
    "beta_min": 0.1,
    "beta_max": 0.99,
    "schedule": "linear",
    "threshold": 0.5,
}
NOT_GIVEN = ("signature", "heads", "evaluation", "gate", "provenance", "held", "rows")
"""Checks that have nothing to look at in a record that is verified without a log."""
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
    version: int = 1


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
            result.append(ledger.build_leaf(f"{record.kind}/{record.version}", record.body, **header))
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
) -> Report:
    """Verify a job whose manifest its maker has kept in step, unless another is given."""
    leaves = job.leaves() if leaves is None else leaves
    return verify.verify_contents(manifest or manifest_of(leaves), leaves, job.table, **files)


def outcomes(report: Report) -> dict[str, str]:
    return {check.name: check.outcome for check in report.checks}


def assert_fails(report: Report, name: str, first_bad: int | None, detail: str = "") -> None:
    """Assert that `name` is the first check that failed, that it names this record, and says this."""
    check = next(check for check in report.checks if check.outcome == "failed")
    assert (check.name, check.first_bad) == (name, first_bad), report.lines()
    assert detail in check.detail
    assert not report.ok
    assert report.exit_code == EXIT_CODES[name]


def make_table(
    safety: dict[str, Any], critic: dict[str, Any] | None
) -> tuple[list[bytes], dict[str, object]]:
    """Make a table of rows 0 to 7 without row 4, which was dropped; under a critic with points, row 3 failed."""
    rng = random.Random(3)  # noqa: S311
    rows = []
    for row in (0, 1, 2, 3, 5, 6, 7):
        commitment = risk_table.row_commitment(b"key", [row, 1, 2], [0, 1, 1])
        if critic is None:
            rows.append(risk_table.unmeasured_row(row, commitment))
        elif critic["low"] is None:
            rows.append(risk_table.constant_row(row, commitment, safety["critic"]["s"]))
        else:
            log_odds = None if row == 3 else rng.gauss(0, 4)
            rows.append(
                risk_table.measured_row(row, commitment, log_odds, low=critic["low"], high=critic["high"])
            )
    points = critic or {"sha256": None, "low": None, "high": None}
    entries = [canonical_bytes(first_version(row)) for row in rows]
    statuses = [row.status for row in rows]
    return entries, {
        "rows": len(rows),
        "dropped": 1,
        "root": root(map(leaf_hash, entries)).hex(),
        "critic_sha256": points["sha256"],
        "low": points["low"],
        "high": points["high"],
        "counts": {name: statuses.count(name) for name in ("ok", "failed", "constant", "unmeasured")},
    }


def first_version(row: risk_table.RiskRow) -> dict[str, Any]:
    """Return an entry as tables of version 1 have it: with the one reading that there could be."""
    fields = {name: getattr(row, name) for name in ("row", "commitment", "s", "status")}
    return fields | {"log_odds": row.log_odds[0] if row.log_odds else None}


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
    risks = {row.row: row.s for row in (risk_table.parse_risk_row(entry, 1) for entry in table)}
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
    checkpoint = {"step": 3, "kind": "interval", "sha256": ledger.digest_of(files), "files": files}
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
