"""What is known of a job, gathered from its records and from the database: plain JSON, from which every document is made."""

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.audit.repository import iterate_leaves
from app.base_models.repository import get_base_model
from app.domain.compute import compare_with_third, estimate_flops
from app.domain.job import State
from app.domain.ledger import peek_kind
from app.domain.provenance import KINDS as PROVENANCE_KINDS
from app.domain.retention import parse_pruning
from app.domain.risk_curve import build_packed_curve
from app.domain.safety_policy import digest_policy, read_policy_file
from app.jobs import repository as jobs
from app.jobs.schemas import gate_to_wire
from app.jobs.service import get_job_critics
from app.models.attestation import Attestation
from app.models.base_model import BaseModel, Critic
from app.models.evaluation import Evaluation
from app.models.file import File
from app.models.job import Checkpoint, Job
from app.models.policy import Policy
from app.models.tenancy import Span
from app.notary import repository as notary
from app.retention.repository import get_newest_done
from app.settings import Settings

CURVE_POINTS = 400
"""Of a picture a few hundred pixels wide; the extremes are kept."""
KINDS = PROVENANCE_KINDS | {"risk.table", "cmd", "gate.start"}
"""The records that documents are made of."""


def gather_facts(session: Session, settings: Settings, job: Job) -> dict[str, Any]:
    """Return everything that the documents about a job say. What is not known is null."""
    records = read_records(session, job.id)
    base = get_base_model(session, job.model)
    published = records["published"]
    return {
        "job": describe_job(job),
        "records": records,
        "base": describe_base(records, base),
        "critics": [describe_critic(each) for each in get_job_critics(session, job)],
        "policy": find_policy(session, settings, records["created"]["policy_sha256"]),
        "curve": find_curve(session, job),
        "compute": describe_compute(session, job, records, base),
        "checkpoints": [describe_checkpoint(each) for each in _checkpoints(session, job)],
        "evaluations": list(list_evaluations(session, job)),
        "lineage": describe_lineage(job, records),
        "gate": gate_to_wire(job),
        "attestation": describe_attestation(session, job),
        "log": describe_log(session, job),
        "canary": (published or {}).get("canary"),
        "retention": {
            "steps_days": settings.retention_steps_days,
            "records_days": settings.retention_records_days,
            "erased_at": describe_erasure(session, job),
        },
    }


def read_records(session: Session, job_id: str) -> dict[str, Any]:
    """Return what a job's ledger says, its steps only counted: there may be a hundred thousand of them.

    Of a record that was pruned only the hash is left, and nothing is said of it.
    """
    found: dict[str, Any] = {
        "created": None,
        "start": None,
        "table": None,
        "published": None,
        "end": None,
        "created_ms": None,
        "ended_ms": None,
        "size": 0,
        "step_records": 0,
        "starts": 0,
        "resumes": [],
        "commands": [],
        "checkpoints": [],
        "gates": [],
        "evaluations": [],
    }
    for leaf in iterate_leaves(session, job_id):
        found["size"] += 1
        kind = peek_kind(leaf)
        if kind == "step":
            found["step_records"] += 1
        elif kind in KINDS:
            _take(found, kind, json.loads(leaf))
    return found


def _take(found: dict[str, Any], kind: str, record: dict[str, Any]) -> None:
    body = record["body"]
    match kind:
        case "job.created":
            found["created"], found["created_ms"] = body, record["ts_db"]
        case "job.start":
            found["start"] = body
            found["starts"] += 1
        case "job.resume":
            found["starts"] += 1
            found["resumes"].append({"from_step": body["from_step"], "at_ms": record["ts_db"]})
            found["evaluations"].clear()
        case "risk.table":
            found["table"] = body
        case "cmd":
            found["commands"].append({**body, "at_ms": record["ts_db"]})
        case "ckpt":
            found["checkpoints"].append({name: body[name] for name in ("step", "kind", "sha256")})
        case "eval":
            found["evaluations"].append(body)
        case "gate" | "gate.start":
            found["gates"].append({"stage": kind, **body})
        case "adapter.published":
            found["published"] = body
        case "job.end":
            found["end"], found["ended_ms"] = body, record["ts_db"]


def describe_job(job: Job) -> dict[str, Any]:
    """Return what the job's row says."""
    work = job.work
    is_released = work.state == State.SUCCEEDED
    return {
        "id": job.id,
        "state": work.state,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model if is_released else None,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "steps": job.step,
        "total_steps": job.total_steps,
        "trained_tokens": job.trained_tokens,
        "risk_mean": job.risk_mean,
        "beta_mean": job.beta_mean,
        "error": work.error,
        "spec": job.spec or job.request,
        "steps_pruned": job.pruned_at is not None,
    }


def describe_base(records: dict[str, Any], base: BaseModel | None) -> dict[str, Any]:
    """Return which base model it was: as the record has it, with what the registry knows of it."""
    published, created = records["published"] or {}, records["created"]
    named = published.get("base") or {
        "name": created["base_model"],
        "revision": None,
        "sha256": created["base_model_sha256"],
    }
    same = base is not None and base.digest == named["sha256"]
    return {
        **named,
        "revision": named["revision"] or (base.revision if base is not None and same else None),
        "files": dict(base.files) if base is not None and same else None,
        "training_flops": base.training_flops if base is not None and same else None,
    }


def describe_critic(critic: Critic) -> dict[str, Any]:
    """Return a fitted critic with its report: how good it was on topics that it was not fitted on."""
    return {
        "id": critic.id,
        "sha256": critic.digest,
        "category": critic.category,
        "low": critic.low,
        "high": critic.high,
        "threshold": critic.threshold,
        "report": critic.report,
    }


def find_policy(session: Session, settings: Settings, sha256: str) -> dict[str, Any]:
    """Return the text of the policy that a job was created under; null where it is kept nowhere any more."""
    stored = session.scalars(select(Policy).where(Policy.sha256 == sha256).limit(1)).one_or_none()
    content = stored.content if stored else read_policy_file(settings.policy_file)
    is_the_one = digest_policy(content) == sha256
    return {"sha256": sha256, "text": content.decode("utf-8") if is_the_one else None}


def find_curve(session: Session, job: Job) -> dict[str, Any] | None:
    """Return the risk curve; null where there is no step, or their records were pruned."""
    if job.pruned_at is not None or not job.step:
        return None
    return build_packed_curve(*jobs.load_curve(session, job), CURVE_POINTS)


def describe_compute(
    session: Session, job: Job, records: dict[str, Any], base: BaseModel | None
) -> dict[str, Any]:
    """Return what the job took: operations by estimate, seconds by the leases of its workers."""
    counted = (records["published"] or {}).get("compute")
    steps = records["end"]["steps"] if records["end"] else 0
    flops = None
    if counted:
        done = max(records["step_records"] + count_pruned_steps(session, job), steps)
        flops = estimate_flops(counted, reference_passes=records["starts"], steps_done=done, steps=steps)
    # Another model may have the name by now.
    original = describe_base(records, base)["training_flops"]
    spent = func.sum(Span.until_ms - Span.started_ms)
    seconds = dict(
        session.execute(select(Span.queue, spent).where(Span.work_id == job.id).group_by(Span.queue)).all()
    )
    start = records["start"]
    return {
        "counted": counted,
        "flops": flops,
        "formula": "6·(N+A)·T + 12·L·H·S for training, 2·N·T + 4·L·H·S for the reference pass; docs/evidence.md",
        "seconds": {queue: float(ms) / 1000 for queue, ms in seconds.items()},
        "device": start["device"] if start else None,
        "original_training_flops": original,
        "one_third_rule": compare_with_third(flops, original),
    }


def count_pruned_steps(session: Session, job: Job) -> int:
    """Return how many records of steps were pruned, those of attempts that were lost among them."""
    pruned = get_newest_done(session, job.id)
    return parse_pruning(pruned.pruning)["counts"].get("step", 0) if pruned is not None else 0


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint that is offered as a model."""
    return {
        "id": checkpoint.id,
        "step": checkpoint.step,
        "name": checkpoint.name,
        "adapter_sha256": checkpoint.adapter_sha256,
        "metrics": checkpoint.metrics,
    }


def list_evaluations(session: Session, job: Job) -> Iterator[dict[str, Any]]:
    """Yield what evaluations of the job's models found, oldest first."""
    rows = session.scalars(
        select(Evaluation)
        .where(Evaluation.job_id == job.id, Evaluation.result.is_not(None))
        .order_by(Evaluation.created_at, Evaluation.id)
    )
    for each in rows:
        yield {"id": each.id, "model": each.model, "sha256": each.result_sha256, "result": each.result}


def describe_lineage(job: Job, records: dict[str, Any]) -> dict[str, Any]:
    """Return where the adapter comes from: base, data, job, checkpoints, adapter, and the generations before."""
    created, published = records["created"], records["published"] or {}
    return {
        "base": {"name": created["base_model"], "sha256": created["base_model_sha256"]},
        "data": {
            "training_file": {"id": job.training_file, "sha256": created["training_sha256"]},
            "validation_file": created["validation_sha256"]
            and {"id": job.validation_file, "sha256": created["validation_sha256"]},
            "anchors": created.get("anchors"),
            "alignment": created.get("alignment"),
        },
        "job": {"id": job.id, "head": job.work.ledger_head, "records": records["size"]},
        "parent": created.get("parent"),
        "checkpoints": records["checkpoints"],
        "adapter": published
        and {"step": published["step"], "sha256": published["zip_sha256"], "files": published["files"]},
        "generations": job.lineage or [],
    }


def _checkpoints(session: Session, job: Job) -> list[Checkpoint]:
    query = select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.name.is_not(None))
    return list(session.scalars(query.order_by(Checkpoint.step)))


def describe_attestation(session: Session, job: Job) -> dict[str, Any] | None:
    """Return which key signed the statement about the adapter, and when."""
    found = session.get(Attestation, job.id)
    return None if found is None else {"key": found.key, "created_at": found.created_at.isoformat()}


def describe_log(session: Session, job: Job) -> dict[str, Any] | None:
    """Return the signed checkpoint that the job's newest head is under; null where none is."""
    log = notary.get_log(session)
    checkpoint = notary.get_checkpoint(session, log.number) if log else None
    if log is None or checkpoint is None:
        return None
    under = [head for head in notary.list_heads(session, log.number, job.id) if head.index < checkpoint.size]
    if not under:
        return None
    return {
        "origin": log.origin,
        "checkpoint_size": checkpoint.size,
        "root": checkpoint.root,
        "key": checkpoint.key,
        "signed_at": checkpoint.signed_at.isoformat(),
        "heads": len(under),
        "covered_records": under[-1].size,
    }


def describe_erasure(session: Session, job: Job) -> str | None:
    """Return when the training file's key was erased."""
    file = session.get(File, job.training_file)
    return file.erased_at.isoformat() if file is not None and file.erased_at is not None else None
