"""A long record on paper, signed: what a verifier has to read of a job of very many steps."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.domain.bundle import LogProof, write_bundle
from app.domain.control_law import (
    MonitorState,
    compute_anchor_weight,
    compute_monitor_state,
    compute_row_betas,
    compute_treatment,
    summarise_step,
)
from app.domain.installation_log import Checkpoint, build_head, format_checkpoint, format_head_line
from app.domain.learning_rate import lr_multiplier
from app.domain.ledger import NO_LEAF, build_leaf, chain_hash, digest_of
from app.domain.merkle import RootBuilder, leaf_hash
from app.domain.note import sign_note, verifier_key
from app.domain.risk_table import FittedPoints, build_risk_table, measured_row
from app.domain.step_plan import Layout, anchor_places, plan_step, split_anchors, total_steps
from app.domain.trust import format_trust

JOB = "ftjob-long"
ORIGIN = "tether.example/bench"
CRITIC: dict[str, Any] = {"id": "critic-1", "sha256": "e" * 64, "low": -2.5, "high": 3.25, "threshold": 0.75}
POLICY_SHA256, CRITIC_SHA256 = "d" * 64, "c" * 64
ANCHORS = {"id": "set_1", "sha256": "5" * 64}
N_ANCHORS = 64
BATCH_SIZE, ROWS = 8, 20_000
DRIFT = 0.01
"""What the monitor measures, which is within its limit."""
SAFETY: dict[str, Any] = {
    "method": "adaptive_kl",
    "critic": {"type": "activation", "id": CRITIC["id"]},
    "beta_min": 0.1,
    "beta_max": 0.99,
    "schedule": "linear",
    "threshold": 0.75,
    "ema_decay": 0.0,
    "scope": "example",
    "replay": True,
    "anchors": {"id": ANCHORS["id"], "weight": 2.0, "per_step": 4},
    "monitor": {"id": ANCHORS["id"], "every": 20, "limit": 0.1, "action": "warn", "floor": 0.1},
}


class Long(NamedTuple):
    """The record as it goes into a bundle."""

    leaves: list[bytes]
    table: list[bytes]


def make_record(steps: int) -> Long:
    """Return the record of a job of about so many steps: full passes over the data, each row with its own risk."""
    chance = random.Random(7)  # noqa: S311 - numbers to write down, no secrets.
    n_rows = min(ROWS, steps * BATCH_SIZE)
    layout = Layout(n_rows, 0, BATCH_SIZE, n_epochs=max(1, steps * BATCH_SIZE // n_rows), seed=7)
    table, table_body, s_of_row = _make_table(n_rows, chance)
    leaves: list[bytes] = []
    for kind, body in _bodies(layout, table_body, s_of_row, chance):
        owned = 0 if kind == "job.created" else 1
        leaves.append(
            build_leaf(
                kind,
                body,
                job=JOB,
                seq=len(leaves),
                attempt=owned,
                epoch=owned,
                prev=chain_hash(leaves[-1]) if leaves else NO_LEAF,
                ts_db=1_790_000_000_000 + len(leaves),
                ts_worker=1_790_000_000_000 + len(leaves),
            )
        )
    return Long(leaves, table)


def write_signed(folder: Path, record: Long) -> tuple[Path, Path]:
    """Write the signed bundle of a record, and the trust policy that it passes; return both."""
    tree = RootBuilder()
    for leaf in record.leaves:
        tree.append(leaf_hash(leaf))
    head = build_head(
        job=JOB,
        size=tree.size,
        root=tree.root().hex(),
        state="signing",
        previous=None,
        ts_db=1_790_000_000_000,
    )
    key = Ed25519PrivateKey.generate()
    text = format_checkpoint(Checkpoint(ORIGIN, 1, leaf_hash(head)))
    log = LogProof(sign_note(text, [(ORIGIN, key)]), [format_head_line(0, head, [])])
    bundle, policy = folder / "evidence.zip", folder / "trust.toml"
    with bundle.open("wb") as file:
        write_bundle(file, job=JOB, leaves=record.leaves, risk_table=record.table, log=log)
    policy.write_text(format_trust(ORIGIN, [verifier_key(ORIGIN, key)]), encoding="utf-8")
    return bundle, policy


def _make_table(n_rows: int, chance: random.Random) -> tuple[list[bytes], dict[str, object], list[float]]:
    rows = []
    for row in range(n_rows):
        found = measured_row(row, f"{row:064x}", chance.gauss(0, 3), low=CRITIC["low"], high=CRITIC["high"])
        treatment = compute_treatment(SAFETY, found.s)
        rows.append(replace(found, treatment=treatment, replay="b" * 64 if treatment == "replay" else None))
    points = [FittedPoints(CRITIC["sha256"], CRITIC["low"], CRITIC["high"])]
    table, body = build_risk_table(rows, dropped=0, critic_sha256=CRITIC_SHA256, fitted=points)
    return table, body, [float(row.s or 0) for row in rows]


def _bodies(
    layout: Layout, table_body: dict[str, object], s_of_row: list[float], chance: random.Random
) -> Iterator[tuple[str, dict[str, Any]]]:
    n_steps = total_steps(SAFETY, layout)
    hyperparameters = {
        "n_epochs": layout.n_epochs,
        "batch_size": layout.batch_size,
        "seed": layout.seed,
        "learning_rate": 1e-4,
        "warmup_ratio": 0.03,
        "lr_scheduler": "cosine",
    }
    asked = {"safety": SAFETY}
    yield (
        "job.created",
        {
            "spec": asked,
            "spec_sha256": digest_of(asked),
            "training_sha256": "1" * 64,
            "training_rows": layout.n_rows,
            "validation_sha256": None,
            "base_model": "base",
            "base_model_sha256": "a" * 64,
            "critic": {"id": CRITIC["id"], "sha256": CRITIC_SHA256, "fitted": [CRITIC]},
            "anchors": ANCHORS,
            "alignment": None,
            "policy_sha256": POLICY_SHA256,
            "actor": "key-1",
            "parent": None,
        },
    )
    yield (
        "job.start",
        {
            "from_step": 0,
            "checkpoint_sha256": None,
            "spec": hyperparameters | {"safety": SAFETY},
            "environment": {},
            "device": "cpu",
            "micro_batch_tokens": 4096,
        },
    )
    yield "risk.table", table_body
    trained, monitored = split_anchors(N_ANCHORS)
    parts = {"trained": trained, "monitored": monitored}
    named = {
        name: [{"row": row, "commitment": f"{row:064x}"} for row in part] for name, part in parts.items()
    }
    yield "anchors", {**ANCHORS, "rows": N_ANCHORS, **named}
    state, tokens = MonitorState(), 0
    for step in range(1, n_steps + 1):
        plan = plan_step(SAFETY, layout, step)
        risks = [s_of_row[row] for row in plan.rows]
        betas, _ = compute_row_betas(SAFETY, risks, state.floor)
        places = anchor_places(SAFETY, step, n_anchors=len(trained), seed=layout.seed)
        factor = lr_multiplier(step, total_steps=n_steps, warmup_ratio=0.03, kind="cosine")
        tokens += 800
        yield (
            "step",
            {
                "step": step,
                "data_epoch": plan.data_epoch,
                "rows": list(plan.rows),
                "alignment_rows": [],
                "tokens": 800,
                **summarise_step(risks, betas)._asdict(),
                "s_smoothed": None,
                "floor": state.floor,
                "anchors": [trained[place] for place in places],
                "anchor_weight": compute_anchor_weight(SAFETY, state),
                "skipped": False,
                "lr": 1e-4 * factor,
                "critic_sha256": CRITIC_SHA256,
                "policy_sha256": POLICY_SHA256,
                **{
                    name: chance.random()
                    for name in ("nll", "kl", "loss", "token_accuracy", "grad_norm", "anchor_kl")
                },
            },
        )
        if step % SAFETY["monitor"]["every"] == 0:
            state = compute_monitor_state(SAFETY["monitor"], DRIFT, state)
            yield "monitor", {"step": step, "kl": DRIFT, **state._asdict()}
    files = {"adapter_config.json": "1" * 64, "adapter_model.safetensors": "2" * 64}
    yield "adapter.published/1", {"step": n_steps, "zip_sha256": "7" * 64, "bytes": 1000, "files": files}
    yield "job.end", {"state": "succeeded", "error": None, "steps": n_steps, "trained_tokens": tokens}
