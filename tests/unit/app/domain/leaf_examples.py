"""One leaf of every version of every type, for the tests of the record format."""

from typing import Any

from app.domain import ledger
from app.domain.step_record import StepRecord
from tests.unit.app.domain.evaluation_examples import make_body

HEADER: dict[str, Any] = {
    "job": "ftjob-1",
    "seq": 0,
    "attempt": 0,
    "epoch": 0,
    "prev": ledger.NO_LEAF,
    "ts_db": 1_790_000_000_000,
}
SPEC = {"n_epochs": 2, "safety": {"method": "adaptive_kl", "beta_min": 0.1}}
ATTEMPT = {
    "from_step": 0,
    "checkpoint_sha256": None,
    "spec": SPEC,
    "environment": {"torch": "2.10.0+cpu"},
    "device": "cpu",
}
STEP = StepRecord(
    step=1,
    data_epoch=0,
    rows=(4, 0),
    tokens=17,
    risk_mean=0.5,
    risk_max=1.0,
    alpha_mean=0.455,
    alpha_min=0.01,
    beta_mean=0.545,
    beta_max=0.99,
    floor=0.0,
    nll=2.25,
    kl=1e-7,
    loss=1.125,
    token_accuracy=0.5,
    grad_norm=3.0,
    lr=1e-4,
    anchors=(3, 1),
    anchor_kl=0.125,
    anchor_weight=4.0,
    s_smoothed=0.25,
    skipped=False,
    alignment_rows=(2,),
)
NEW_IN_STEP_2 = ("anchors", "anchor_kl", "anchor_weight", "s_smoothed", "skipped", "alignment_rows")
DIGESTS = {"critic_sha256": "c" * 64, "policy_sha256": "d" * 64}
CREATED: dict[str, Any] = {
    "spec": SPEC,
    "spec_sha256": "0" * 64,
    "training_sha256": "1" * 64,
    "training_rows": None,
    "validation_sha256": None,
    "base_model": "org/model-1",
    "base_model_sha256": "2" * 64,
    "critic": {"id": "critic-1", "sha256": "c" * 64, "low": -2.5, "high": None},
    "policy_sha256": "d" * 64,
    "actor": "key-7",
}
RISK_TABLE: dict[str, Any] = {
    "rows": 2,
    "dropped": 0,
    "root": "4" * 64,
    "critic_sha256": None,
    "low": None,
    "high": None,
    "counts": {"ok": 0, "failed": 0, "constant": 0, "unmeasured": 2},
}
ANCHORS: dict[str, Any] = {
    "id": "set_1",
    "sha256": "9" * 64,
    "trained": [{"row": 0, "commitment": "a" * 64}, {"row": 1, "commitment": "b" * 64}],
    "monitored": [{"row": 7, "commitment": "c" * 64}],
}
STEP_2 = {**STEP.to_dict(), **DIGESTS}
BODIES: dict[str, dict[str, Any]] = {
    "job.created/1": CREATED,
    "job.created/2": CREATED
    | {
        "critic": CREATED["critic"] | {"threshold": 0.5},
        "anchors": {"id": "set_1", "sha256": "9" * 64},
        "alignment": None,
    },
    "job.created/3": CREATED
    | {
        "critic": CREATED["critic"] | {"threshold": 0.5},
        "anchors": None,
        "alignment": None,
        "parent": {"job": "ftjob-7", "step": 12, "adapter_sha256": "7" * 64},
    },
    "job.created/4": CREATED
    | {
        "critic": {
            "id": "combined",
            "sha256": "c" * 64,
            "fitted": [
                {"id": "critic-1", "sha256": "a" * 64, "low": -2.5, "high": 3.0, "threshold": 0.5},
                {"id": "critic-2", "sha256": "b" * 64, "low": -1.5, "high": 2.0, "threshold": None},
            ],
        },
        "anchors": None,
        "alignment": None,
        "parent": None,
    },
    "job.start/1": ATTEMPT,
    "job.start/2": ATTEMPT | {"micro_batch_tokens": 4096},
    "job.resume/1": ATTEMPT | {"from_step": 3, "checkpoint_sha256": "3" * 64},
    "job.resume/2": ATTEMPT | {"from_step": 3, "checkpoint_sha256": "3" * 64, "micro_batch_tokens": 2048},
    "risk.table/1": RISK_TABLE,
    "risk.table/2": RISK_TABLE
    | {
        "counts": RISK_TABLE["counts"] | {"judged": 0, "fallback": 0},
        "treatments": {"own": 2, "replay": 0, "drop": 0},
    },
    "risk.table/3": {name: value for name, value in RISK_TABLE.items() if name not in ("low", "high")}
    | {
        "critic_sha256": "c" * 64,
        "fitted": [
            {"sha256": "a" * 64, "low": -2.5, "high": 3.0},
            {"sha256": "b" * 64, "low": -1.5, "high": 2.0},
        ],
        "counts": RISK_TABLE["counts"] | {"judged": 0, "fallback": 0},
        "treatments": {"own": 2, "replay": 0, "drop": 0},
    },
    "anchors/1": ANCHORS,
    "anchors/2": ANCHORS | {"rows": 8},
    "alignment/1": {"id": "set_2", "sha256": "9" * 64, "rows": 200},
    "alignment/2": {"id": "set_2", "sha256": "9" * 64, "rows": 200, "dropped": [7]},
    "step/1": {name: value for name, value in STEP_2.items() if name not in NEW_IN_STEP_2},
    "step/2": STEP_2,
    "monitor/1": {"step": 20, "kl": 0.25, "floor": 0.0, "anchor_factor": 2.0},
    "live/1": {
        "step": 52,
        "scores": [
            {
                "row": 1,
                "s": 0.75,
                "status": "judged",
                "votes": [[4, None, 4]],
                "asked_at": 50,
                "reference_votes": [[1, 1, 1]],
            }
        ],
    },
    "ckpt/1": {"step": 3, "kind": "interval", "sha256": "5" * 64, "files": {"trainer.json": "6" * 64}},
    "ckpt/2": {
        "step": 3,
        "kind": "epoch",
        "sha256": "3" * 64,
        "files": {"adapter.safetensors": "a" * 64},
        "adapter_sha256": None,
    },
    "ckpt.invalid/1": {"step": 3, "sha256": "3" * 64, "why": "missing"},
    "eval/1": make_body(6),
    "cmd/1": {"command": "cancel", "actor": "key-7"},
    "gate.start/1": {
        "policy_sha256": "d" * 64,
        "verdict": "tighten",
        "floor": 0.2,
        "limits": [
            {
                "limit": "critic_auroc",
                "found": None,
                "bound": 0.9,
                "action": "tighten",
                "beta_min": 0.2,
                "broken": True,
            }
        ],
    },
    "gate/1": {
        "policy_sha256": "d" * 64,
        "verdict": "pass",
        "limits": [
            {
                "limit": "fallback_share",
                "found": 0.25,
                "bound": 0.5,
                "action": "hold",
                "beta_min": None,
                "broken": False,
            }
        ],
    },
    "adapter.published/1": {
        "step": 6,
        "zip_sha256": "7" * 64,
        "bytes": 9,
        "files": {"adapter_model.safetensors": "8" * 64},
    },
    "adapter.published/2": {
        "step": 6,
        "zip_sha256": "7" * 64,
        "bytes": 9,
        "files": {"adapter_model.safetensors": "8" * 64},
        "base": {"name": "miniature-1", "revision": None, "sha256": "a" * 64},
        "canary": {"prompt_ids": [1, 2], "continuation_ids": [3], "tuned": [-0.5], "base": [-2.5]},
        "compute": {
            "parameters": 1000,
            "adapter_parameters": 10,
            "layers": 2,
            "hidden_size": 8,
            "reference_tokens": 200,
            "reference_squares": 4000,
            "training_tokens": 300,
            "training_squares": 6000,
        },
    },
    "job.end/1": {"state": "failed", "error": "training_failed", "steps": 6, "trained_tokens": 100},
}


def build(kind: str, change: dict[str, Any] | None = None, **header: Any) -> bytes:
    """Build a leaf of a type, in its newest version unless the name has one."""
    name = kind if "/" in kind else max(each for each in BODIES if each.startswith(f"{kind}/"))
    return ledger.build_leaf(kind, BODIES[name] | (change or {}), **HEADER | header)
