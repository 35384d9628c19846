"""The facts about a made-up job that has everything: gate, evaluations, generations, a resume, a canary."""

import math
from typing import Any

SHA = {name: name * 64 for name in "0123456789abcdef"}
COLUMNS = (
    "step",
    "risk_mean",
    "risk_max",
    "risk_smoothed",
    "beta_mean",
    "beta_max",
    "alpha_mean",
    "nll",
    "kl",
    "loss",
    "lr",
    "anchor_kl",
    "drift",
)


def make_curve(steps: int = 120) -> dict[str, Any]:
    rows = []
    for step in range(1, steps + 1):
        risk = 0.15 + 0.1 * math.sin(step / 9) + (0.5 if 60 <= step < 66 else 0)
        nll = 2.4 * math.exp(-step / 40) + 0.3
        beta = 0.1 + 0.89 * risk
        rows.append(
            [
                step,
                risk,
                min(1.0, risk * 1.6),
                risk,
                beta,
                min(1.0, beta * 1.3),
                1 - beta,
                nll,
                0.02 * step**0.5,
                nll * 0.8,
                0.0001,
                0.001 * step,
                None,
            ]
        )
    return {"columns": list(COLUMNS), "rows": rows}


def measure(value: float | None, half: float = 0.05) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": 0, "count": None}
    return {"value": value, "low": value - half, "high": value + half, "n": 64, "count": None}


def comparison(
    name: str, before: float | None, after: float | None, judge: str | None = "exact"
) -> dict[str, Any]:
    known = before is not None and after is not None
    return {
        "name": name,
        "judge": judge,
        "before": measure(before),
        "after": measure(after),
        "difference": measure(after - before if known else None),  # type: ignore[operator]
        "samples": 1,
        "correlation": 0.5,
        "unjudged": 0,
    }


def make_result(suite: str = "miniature") -> dict[str, Any]:
    return {
        "suite": suite,
        "suite_sha256": SHA["e"],
        "prompts": {"harmful": 64, "borderline": 64, "utility": 64},
        "judges": [{"type": "exact", "sha256": SHA["f"]}],
        "comparisons": [
            comparison("attack_success.greedy", 0.02, 0.03),
            comparison("over_refusal.greedy", 0.05, 0.04),
            comparison("task_score.greedy", 0.31, 0.92),
            comparison("loss", 2.4, 0.7, judge=None),
            comparison("win_rate.greedy", None, None),
        ],
        "agreements": [],
        "step": 120,
    }


def make_facts(**changes: Any) -> dict[str, Any]:
    """Return the facts, with some of them changed."""
    spec = {
        "n_epochs": 3,
        "batch_size": 8,
        "safety": {"method": "adaptive_kl", "anchors": {"weight": 1.0}, "critic": {"type": "activation"}},
    }
    created = {
        "spec": spec,
        "spec_sha256": SHA["2"],
        "training_sha256": SHA["1"],
        "training_rows": 320,
        "validation_sha256": SHA["3"],
        "base_model": "org/base-7b",
        "base_model_sha256": SHA["a"],
        "critic": {"id": "activation", "sha256": SHA["c"], "fitted": []},
        "anchors": {"id": "set_1", "sha256": SHA["4"]},
        "alignment": None,
        "parent": {"job": "ftjob-parent", "step": 60, "adapter_sha256": SHA["9"]},
        "policy_sha256": SHA["d"],
        "actor": "key_1",
    }
    files = {"adapter_config.json": SHA["5"], "adapter_model.safetensors": SHA["6"], "tether.json": SHA["8"]}
    canary = {"prompt_ids": [1, 2], "continuation_ids": [3, 4], "tuned": [-0.5, -1.0], "base": [-3.0, -2.0]}
    published = {
        "step": 120,
        "zip_sha256": SHA["7"],
        "bytes": 1_000_000,
        "files": files,
        "base": {"name": "org/base-7b", "revision": "0f1e2d", "sha256": SHA["a"]},
        "canary": canary,
    }
    limits = [
        {
            "limit": "attack_success_increase",
            "found": 0.01,
            "bound": 0.05,
            "action": "hold",
            "beta_min": None,
            "broken": False,
        },
        {
            "limit": "utility_loss",
            "found": None,
            "bound": 0.1,
            "action": "warn",
            "beta_min": None,
            "broken": True,
        },
    ]
    counts = {"ok": 318, "failed": 2, "constant": 0, "unmeasured": 0, "judged": 0, "fallback": 0}
    facts = {
        "job": {
            "id": "ftjob-0b5e",
            "state": "succeeded",
            "model": "org/base-7b",
            "fine_tuned_model": "ft:org/base-7b:tether:support:0b5e0b5e",
            "training_file": "file-1",
            "validation_file": "file-2",
            "steps": 120,
            "total_steps": 120,
            "trained_tokens": 120_000,
            "risk_mean": 0.17,
            "beta_mean": 0.25,
            "error": None,
            "spec": spec,
            "steps_pruned": False,
        },
        "records": {
            "created": created,
            "start": {
                "spec": spec,
                "environment": {"python": "3.11.7", "torch": "2.10.0+cu128"},
                "device": "cuda-0",
            },
            "table": {
                "rows": 320,
                "dropped": 0,
                "root": SHA["b"],
                "critic_sha256": SHA["c"],
                "counts": counts,
                "treatments": {"own": 300, "replay": 20, "drop": 0},
            },
            "published": published,
            "end": {"state": "succeeded", "error": None, "steps": 120, "trained_tokens": 120_000},
            "created_ms": 1_790_000_000_000,
            "ended_ms": 1_790_000_900_000,
            "size": 140,
            "step_records": 126,
            "starts": 2,
            "resumes": [{"from_step": 40, "at_ms": 1_790_000_500_000}],
            "commands": [{"command": "pause", "actor": "key_2", "at_ms": 1_790_000_400_000}],
            "checkpoints": [{"step": 40, "kind": "epoch", "sha256": SHA["0"]}],
            "gates": [{"stage": "gate", "policy_sha256": SHA["d"], "verdict": "warn", "limits": limits}],
            "evaluations": [make_result()],
        },
        "base": {
            "name": "org/base-7b",
            "revision": "0f1e2d",
            "sha256": SHA["a"],
            "files": {"model.safetensors": SHA["a"]},
            "training_flops": 1.5e23,
        },
        "critics": [
            {
                "id": "critic_1",
                "sha256": SHA["c"],
                "category": "general",
                "low": -2.0,
                "high": 3.0,
                "threshold": 0.5,
                "report": {"auroc": 0.9712, "tpr_at_1_percent_fpr": 0.88},
            }
        ],
        "policy": {"sha256": SHA["d"], "text": "methods = ['adaptive_kl']\n"},
        "curve": make_curve(),
        "compute": {
            "counted": None,
            "flops": 3.2e15,
            "seconds": {"gpu": 812.5},
            "device": "cuda-0",
            "original_training_flops": 1.5e23,
            "one_third_rule": "below",
        },
        "checkpoints": [
            {
                "id": "ftckpt_1",
                "step": 40,
                "name": "ft:org/base-7b:tether:support:0b5e0b5e:ckpt-step-40",
                "adapter_sha256": SHA["0"],
                "metrics": {
                    "run_risk_mean": 0.14,
                    "run_risk_max": 0.4,
                    "run_beta_mean": 0.22,
                    "train_loss": 1.1,
                    "full_valid_loss": 1.2,
                },
            }
        ],
        "evaluations": [
            {"id": "eval_1", "model": "ft:x", "sha256": SHA["f"], "result": make_result("own-prompts")}
        ],
        "lineage": {
            "generations": [{"model": "ft:org/base-7b:tether::parent00", "job": "ftjob-parent", "step": 60}]
        },
        "gate": {
            "decisions": [{"decision": "approved", "by": "key_3", "at": 1, "reason": "looked at the replies"}]
        },
        "attestation": {"key": "0a1b2c3d", "created_at": "2026-11-20T10:00:00+00:00"},
        "log": {
            "origin": "tether.example/log",
            "checkpoint_size": 99,
            "root": SHA["e"],
            "key": "0a1b2c3d",
            "signed_at": "2026-11-20T10:00:00+00:00",
            "heads": 4,
            "covered_records": 140,
        },
        "canary": canary,
        "retention": {"steps_days": 730, "records_days": 3653, "erased_at": None},
    }
    return facts | changes
