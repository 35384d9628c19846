"""The check of the lineage: from whose adapter a job went on, as the bundle of that job has it. Standard library only."""

from collections.abc import Callable
from typing import Any

from app.domain.verification import Broken, JobSoFar, NotChecked, ensured

SHAPE = ("lora_r", "lora_alpha")
"""Fields of the resolved spec that an adapter keeps from one generation to the next."""


def _lineage_at_end(job: JobSoFar) -> str:
    said = ensured(job.created).get("parent")
    if said is None:
        if job.parent is not None:
            raise Broken("a parent's bundle was given, but the job began with a fresh adapter")
        return "the job began with a fresh adapter"
    name = f"the adapter of {said['job']} after step {said['step']}"
    if job.parent is None:
        raise NotChecked(f"the job went on from {name}, whose bundle was not given")
    parent = _read(job)
    if parent.manifest["job"] != said["job"]:
        raise Broken(f"the job went on from {name}; the bundle is that of {parent.manifest['job']}")
    if (said["step"], said["adapter_sha256"]) not in parent.adapters:
        raise Broken(
            f"the job went on from {name} with the SHA-256 {said['adapter_sha256']}, which no record of that job has"
        )
    _check_kept(job, parent)
    return f"the job went on from {name}, as the record of that job has it, and on the same base model"


def _read(job: JobSoFar) -> JobSoFar:
    report, parent = ensured(job.parent)
    failed = next((check for check in report.checks if check.outcome == "failed"), None)
    if failed is not None:
        raise Broken(f"the parent's bundle fails the check {failed.name!r}: {failed.detail}")
    return ensured(parent)


def _check_kept(job: JobSoFar, parent: JobSoFar) -> None:
    """Check that base model and shape of the adapter are the parent's: the reference is the same in every generation."""
    ours, theirs = (_kept(each) for each in (job, parent))
    for name, value in ours.items():
        if value != theirs[name]:
            raise Broken(f"{name} is {value}; the parent's is {theirs[name]}")


def _kept(job: JobSoFar) -> dict[str, Any]:
    spec = job.spec or {}
    return {
        "base_model_sha256": ensured(job.created)["base_model_sha256"],
        **{name: spec.get(name) for name in SHAPE if job.spec is not None},
    }


AT_END: dict[str, Callable[[JobSoFar], str]] = {"lineage": _lineage_at_end}
