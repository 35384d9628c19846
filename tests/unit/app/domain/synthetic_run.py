"""A job made up in the newest version of every record: replay, filter, anchors, monitor, alignment, several critics.

What `synthetic_job` is to bundles from long ago. Steps 3 and 4 are lost in a crash, with a measurement of the monitor
that the second attempt does not repeat, so that a verifier which forgets to forget is found out.
"""

import copy
import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from app.domain import ledger, risk_table
from app.domain.canonical import canonical_bytes, parse_canonical
from app.domain.control_law import (
    MonitorState,
    compute_anchor_weight,
    compute_monitor_state,
    compute_row_betas,
    compute_s,
    compute_treatment,
    fitted_ids,
    measure_row,
    raise_s,
    summarise_step,
)
from app.domain.learning_rate import lr_multiplier
from app.domain.merkle import leaf_hash, root
from app.domain.safety_spec import Safety
from app.domain.step_plan import Layout, anchor_places, plan_step, total_steps
from tests.unit.app.domain.synthetic_job import (
    ADAPTER,
    ADAPTER_FILES,
    POLICY,
    Record,
    SyntheticJob,
)

LOG_ODDS = {0: -3.0, 1: 4.0, 2: 0.5, 3: None, 5: 1.0, 6: -0.25, 7: 2.5}
"""By row, of the first critic; row 4 was dropped for its length, and the critic failed on row 3."""
READ = {"critic-1": LOG_ODDS, "critic-2": {0: 9.5, 1: -4.0, 2: 0.25, 3: 0.75, 5: 1.5, 6: -0.5, 7: 3.0}}
"""By critic and row: the second finds row 0 risky and row 1 harmless, as the first one does not."""
FITTED: dict[str, dict[str, Any]] = {
    "critic-1": {"id": "critic-1", "sha256": "e" * 64, "low": -2.5, "high": 3.25, "threshold": 0.75},
    "critic-2": {"id": "critic-2", "sha256": "f" * 64, "low": -1.0, "high": 3.0, "threshold": 1.25},
}
VOTES: dict[int, tuple[tuple[int | None, ...], ...]] = {
    0: ((1, 1, 2),),
    1: ((4,), (5, None, 5)),
    2: ((2,),),
    3: ((None,),),
} | dict.fromkeys((5, 6, 7), ((None, 1, None),))
"""By row, of a judge: row 3 has no vote at all, rows 5 to 7 too few."""
LIVE_VOTES: dict[int, tuple[tuple[int | None, ...], ...]] = dict.fromkeys(LOG_ODDS, ((5, None, 5),)) | {
    3: ((None,),),
    6: ((2,), (None,)),
}
"""By row, of a live judge: nobody fills in for it in row 3, in row 6 the activation critic does."""
ANCHORS = {"id": "set_1", "sha256": "5" * 64}
ALIGNMENT = {"id": "set_2", "sha256": "6" * 64}
ANCHOR_ROWS, TRAINED, MONITORED = 9, (0, 1, 2, 3, 4, 5, 6, 8), (7,)
ALIGNMENT_ROWS, TOO_LONG = 5, 3
HYPERPARAMETERS: dict[str, Any] = {
    "n_epochs": 2,
    "batch_size": 2,
    "seed": 7,
    "learning_rate": 1e-3,
    "warmup_ratio": 0.25,
    "lr_scheduler": "cosine",
    "overlength": "drop",
}
FIELDS: dict[str, dict[str, Any]] = {
    "lisa": {"alignment_steps": 2, "user_steps": 3},
    "safety_mix": {"share": 0.75},
    "fixed_kl": {"beta": 0.5},
}
"""What a method has unless a test says otherwise."""
BEYOND, WITHIN = 0.5, 0.01
"""Drifts on both sides of the monitor's limit."""
MONITOR = {"every": 2, "limit": 0.1}


def wire(method: str, **fields: Any) -> dict[str, Any]:
    """Return the stored form of a safety object, its critics and sets pinned."""
    safety = TypeAdapter(Safety).validate_python({"method": method, **fields}).model_dump()
    safety["critic"] = pin(safety["critic"] or {"type": "activation", "id": None})
    for name, pinned in (("anchors", ANCHORS), ("monitor", ANCHORS)):
        if safety[name]:
            safety[name]["id"] = pinned["id"]
    if "alignment_file" in safety:
        safety["alignment_file"] = ALIGNMENT["id"]
    return safety


def pin(critic: dict[str, Any]) -> dict[str, Any]:
    """Return a critic with the first fitted one wherever none is named."""
    if critic["type"] == "combined":
        return critic | {"critics": list(map(pin, critic["critics"]))}
    name = {"activation": "id", "judge": "fallback"}.get(critic["type"])
    return critic | {name: critic[name] or "critic-1"} if name else critic


def make_run(
    method: str = "adaptive_kl",
    *,
    skipped: Sequence[int] = (),
    version: int = 4,
    gate_floor: float = 0.0,
    **fields: Any,
) -> SyntheticJob:
    """Make a whole job of 2 data epochs under a safety object of these fields, `threshold` left to the critic.

    `gate_floor` is the least beta that a policy's gate has asked for; its record is not among these.
    `version` is that of job.created; with 2 and 3 the risk table has version 2, and one fitted critic at most.
    """
    if method in ("adaptive_kl", "filter"):
        fields = {"monitor": MONITOR, **fields}
    asked = wire(method, **FIELDS.get(method, {}) | fields)
    safety = resolve_threshold(asked)
    table, table_body = make_table(safety)
    parsed = [risk_table.parse_risk_row(entry) for entry in table]
    kept = {row.row: row.s for row in parsed if row.treatment != "drop"}
    trainer = Trainer(safety, kept, skipped, gate_floor)
    n_steps = trainer.n_steps
    created_spec = {"hyperparameters": {"n_epochs": "auto"}, "safety": asked}
    start = {
        "from_step": 0,
        "checkpoint_sha256": None,
        "spec": HYPERPARAMETERS | {"safety": safety},
        "environment": {"python": "3.11.7"},
        "device": "cpu",
        "micro_batch_tokens": 4096,
    }
    has_anchors = bool(safety["anchors"] or safety["monitor"])
    created = {
        "spec": created_spec,
        "spec_sha256": ledger.digest_of(created_spec),
        "training_sha256": "1" * 64,
        "training_rows": 8,
        "validation_sha256": None,
        "base_model": "miniature-1",
        "base_model_sha256": "a" * 64,
        "critic": {
            "id": safety["critic"]["type"],
            "sha256": "c" * 64,
            "fitted": [FITTED[str(each)] for each in fitted_ids(safety["critic"])],
        },
        "anchors": ANCHORS if has_anchors else None,
        "alignment": ALIGNMENT if "alignment_file" in safety else None,
        "policy_sha256": POLICY,
        "actor": "key-77",
        "parent": None,
    }
    records = [
        Record("job.created", created, 0, 0, version=4),
        Record("job.start", start, 1, 1, version=2),
        Record("risk.table", table_body, 1, 1, version=3),
    ]
    if has_anchors:
        records.append(Record("anchors", make_anchors(safety), 1, 1, version=2))
    if "alignment_file" in safety:
        records.append(
            Record("alignment", ALIGNMENT | {"rows": ALIGNMENT_ROWS, "dropped": [TOO_LONG]}, 1, 1, version=2)
        )
    files = {"adapter.safetensors": "b" * 64}
    checkpoint = {"step": 2, "kind": "interval", "sha256": ledger.digest_of(files), "files": files}
    records += trainer.run(1, 2, drift=BEYOND, owner=(1, 1))
    records += [Record("ckpt", checkpoint, 1, 1)]
    saved = copy.copy(trainer)
    records += trainer.run(3, 4, drift=BEYOND, owner=(1, 1))
    # Memory ran out: it goes on with micro-batches of half the size.
    resumed = {"from_step": 2, "checkpoint_sha256": checkpoint["sha256"], "micro_batch_tokens": 2048}
    records += [Record("job.resume", start | resumed, 2, 3, version=2)]
    records += saved.run(3, n_steps, drift=WITHIN, owner=(2, 3))
    published = {
        "step": n_steps,
        "zip_sha256": "7" * 64,
        "bytes": len(ADAPTER),
        "files": ADAPTER_FILES,
    }
    tokens = sum(10 + step for step in range(1, n_steps + 1) if step not in skipped)
    end = {"state": "succeeded", "error": None, "steps": n_steps, "trained_tokens": tokens}
    records += [Record("adapter.published", published, 2, 3), Record("job.end", end, 2, 3)]
    job = SyntheticJob(copy.deepcopy(records), table)
    return job if version == 4 else to_older(job, version)


def to_older(job: SyntheticJob, version: int) -> SyntheticJob:
    """Return a job with one fitted critic in the form that records had before there could be several."""
    created, table = (job.records[job.find(kind)] for kind in ("job.created", "risk.table"))
    created.version, table.version = version, 2
    if version == 2:
        del created.body["parent"]
    (fitted,) = created.body["critic"].pop("fitted")
    created.body["critic"] |= {name: fitted[name] for name in ("low", "high", "threshold")}
    del table.body["fitted"]
    table.body |= {name: fitted[name] for name in ("low", "high")}
    entries = [parse_canonical(entry) for entry in job.table or ()]
    job.table = [canonical_bytes(entry | {"log_odds": entry["log_odds"][0]}) for entry in entries]
    table.body["root"] = root(map(leaf_hash, job.table)).hex()
    return job


def to_first_sets(job: SyntheticJob) -> SyntheticJob:
    """Return a job of version 2 with its sets in the form that they had at first."""
    for record in job.records:
        if record.kind in ("anchors", "alignment"):
            record.version = 1
            record.body.pop("rows" if record.kind == "anchors" else "dropped")
    return job


def resolve_threshold(safety: dict[str, Any]) -> dict[str, Any]:
    """Return `safety` with the critic's threshold, by hand."""
    if safety.get("threshold") != "auto":
        return safety
    own = {
        name: (each["threshold"] - each["low"]) / (each["high"] - each["low"])
        for name, each in FITTED.items()
    }

    def threshold(critic: dict[str, Any]) -> float:
        if critic["type"] == "combined":
            parts = [threshold(part) for part in critic["critics"]]
            if critic["rule"] == "max":
                return min(parts)
            return math.fsum(map(operator.mul, critic["weights"], parts))
        return own[critic["id"]] if critic["type"] == "activation" else 0.5

    return safety | {"threshold": threshold(safety["critic"])}


def make_table(safety: dict[str, Any]) -> tuple[list[bytes], dict[str, Any]]:
    rows = []
    critic = safety["critic"]
    fitted = [FITTED[str(each)] for each in fitted_ids(critic)]
    for row in LOG_ODDS:
        commitment = risk_table.row_commitment(b"key", [row, 1, 2], [0, 1, 1])
        measured = measure(row, commitment, critic, fitted)
        treatment = compute_treatment(safety, measured.s)
        replay = risk_table.row_commitment(b"key", [row, 9], [0, 1]) if treatment == "replay" else None
        rows.append(replace(measured, treatment=treatment, replay=replay))
    points = [risk_table.FittedPoints(each["sha256"], each["low"], each["high"]) for each in fitted]
    return risk_table.build_risk_table(rows, dropped=1, critic_sha256="c" * 64, fitted=points)


def measure(
    row: int, commitment: str, critic: dict[str, Any], fitted: Sequence[dict[str, Any]]
) -> risk_table.RiskRow:
    """Return a row as a critic has measured it; where one part failed, all have."""
    log_odds = [READ[each["id"]][row] for each in fitted]
    if None in log_odds:
        return risk_table.RiskRow(row, commitment, (None,) * len(fitted), 1.0, "failed")
    votes = VOTES[row] if has_judge(critic) else ()
    status, s = measure_row(critic, {each["id"]: s_of(row, each) for each in fitted}, votes)
    if status == "judged" and critic["type"] == "judge":
        # Alone, a judge that was heard leaves nothing to fill in.
        log_odds = [None] * len(fitted)
    return risk_table.RiskRow(row, commitment, tuple(log_odds), s, status, votes=votes)


def s_of(row: int, fitted: dict[str, Any]) -> float:
    log_odds = READ[fitted["id"]][row]
    assert log_odds is not None
    return compute_s(log_odds, fitted["low"], fitted["high"])


def has_judge(critic: dict[str, Any]) -> bool:
    return "judge" in (critic["type"], *(part["type"] for part in critic.get("critics", ())))


def is_live(critic: dict[str, Any] | None) -> bool:
    parts = (critic or {}).get("critics", [critic or {}])
    return any(part.get("mode") == "live" for part in parts)


def live_score(row: int, critic: dict[str, Any], *, asked_at: int) -> dict[str, Any]:
    """Return what a live judge has said of a row, as the record has it."""
    votes = LIVE_VOTES[row]
    status, s = "failed", 1.0
    if row != 3:
        read = {}
        # Alone, the judge was heard on the other rows before training, so that the activation critic was not asked.
        if row in (5, 6, 7) or critic["type"] == "combined":
            read = {"critic-1": s_of(row, FITTED["critic-1"])}
        status, s = measure_row({"type": "judge", "fallback": "critic-1"}, read, votes)
    return {
        "row": row,
        "s": s,
        "status": status,
        "votes": votes,
        "asked_at": asked_at,
        "reference_votes": [[1]],
    }


def make_anchors(safety: dict[str, Any]) -> dict[str, Any]:
    trained, monitored = (
        [{"row": row, "commitment": f"{row:064x}"} for row in part] for part in (TRAINED, MONITORED)
    )
    return {
        **ANCHORS,
        "rows": ANCHOR_ROWS,
        "trained": trained if safety["anchors"] else [],
        "monitored": monitored if safety["monitor"] else [],
    }


class Trainer:
    """Writes the records of steps as a trainer would."""

    def __init__(
        self,
        safety: dict[str, Any],
        s_of: dict[int, float | None],
        skipped: Sequence[int],
        gate_floor: float,
    ) -> None:
        self.safety, self.s_of, self.skipped, self.gate_floor = safety, s_of, skipped, gate_floor
        self.rows = list(s_of)
        self.alignment = [row for row in range(ALIGNMENT_ROWS) if row != TOO_LONG]
        n_epochs, batch_size, seed = (HYPERPARAMETERS[name] for name in ("n_epochs", "batch_size", "seed"))
        self.layout = Layout(len(self.rows), len(self.alignment), batch_size, n_epochs, seed)
        self.n_steps = total_steps(safety, self.layout)
        self.state = MonitorState()
        self.smoothed: float | None = None
        self.live: dict[int, float] = {}

    def run(self, first: int, last: int, *, drift: float, owner: tuple[int, int]) -> list[Record]:
        """Return the records of some steps, and of the measurements that are due after them."""
        records = []
        monitor = self.safety["monitor"]
        for step in range(first, last + 1):
            # The second attempt hears of no score until step 5, so that the first one's must be forgotten.
            if is_live(self.safety["critic"]) and step > 2 and (owner == (1, 1) or step > 4):
                records.append(Record("live", self._hear(step), *owner))
            records.append(Record("step", self._step(step), *owner, version=2))
            if monitor and step % monitor["every"] == 0:
                self.state = compute_monitor_state(monitor, drift, self.state)
                records.append(Record("monitor", {"step": step, "kl": drift, **self.state._asdict()}, *owner))
        return records

    def _hear(self, step: int) -> dict[str, Any]:
        scores = [live_score(row, self.safety["critic"], asked_at=step - 1) for row in self.s_of]
        self.live = {**self.live, **{score["row"]: score["s"] for score in scores}}
        return {"step": step, "scores": scores}

    def _step(self, step: int) -> dict[str, Any]:
        plan = plan_step(self.safety, self.layout, step)
        rows = [self.rows[place] for place in plan.rows]
        s_values = [self.s_of[row] for row in rows]
        live = [self.live.get(row) for row in rows]
        floor = max(self.state.floor, self.gate_floor)
        betas, self.smoothed = compute_row_betas(self.safety, s_values, floor, self.smoothed, live)
        anchors = anchor_places(self.safety, step, n_anchors=len(TRAINED), seed=self.layout.seed)
        skipped = step in self.skipped
        factor = lr_multiplier(
            step,
            total_steps=self.n_steps,
            warmup_ratio=HYPERPARAMETERS["warmup_ratio"],
            kind=HYPERPARAMETERS["lr_scheduler"],
        )
        return {
            "step": step,
            "data_epoch": plan.data_epoch,
            "rows": rows,
            "alignment_rows": [self.alignment[place] for place in plan.alignment],
            "tokens": 10 + step,
            **summarise_step(list(map(raise_s, s_values, live)), betas)._asdict(),
            "floor": floor,
            "nll": float("nan") if skipped else 2.5 / step,
            "kl": 0.01 if rows and self.safety["method"] in ("adaptive_kl", "fixed_kl") else None,
            "loss": float("nan") if skipped else 1.5 / step,
            "token_accuracy": 0.5,
            "grad_norm": 1.0,
            "lr": HYPERPARAMETERS["learning_rate"] * factor,
            "anchors": [TRAINED[place] for place in anchors],
            "anchor_kl": 0.02 if anchors else None,
            "anchor_weight": compute_anchor_weight(self.safety, self.state),
            "s_smoothed": self.smoothed,
            "skipped": skipped,
            "critic_sha256": "c" * 64,
            "policy_sha256": POLICY,
        }
