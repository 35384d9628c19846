"""Jobs that have released a model and checkpoints, without training them."""

import io
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app import storage
from app.audit.repository import append_leaf, iterate_leaves
from app.database import unit_of_work
from app.domain.job import State, model_name
from app.files.service import RESULTS, add_file
from app.jobs.repository import add_checkpoint
from app.models.base import new_id, utc_now
from app.models.job import Job
from app.models.work import Work
from tests.integration.conftest import Tenant


@dataclass(frozen=True)
class Released:
    """What a job released."""

    job_id: str
    model: str
    adapter: bytes
    checkpoint_id: str
    checkpoint: str
    checkpoint_adapter: bytes
    results: tuple[str, ...]
    """Ids of the result files."""


def release_job(tenant: Tenant, state: State = State.SUCCEEDED, *, same_weights: bool = False) -> Released:
    """Make a job and bring it to its end, with an adapter and one checkpoint with a name, as a worker does."""
    job_id = tenant.create_job(suffix="mine")["id"]
    adapter = new_id("adapter of ").encode()
    checkpoint_adapter = adapter if same_weights else new_id("adapter of a checkpoint of ").encode()
    settings = tenant.server.settings
    final, early = (
        storage.store_stream(settings.storage, io.BytesIO(each)) for each in (adapter, checkpoint_adapter)
    )
    with unit_of_work(tenant.server.database) as session:
        job = session.get_one(Job, job_id)
        work = session.get_one(Work, job_id)
        work.state = state
        work.finished_at = utc_now()
        job.step = 3
        checkpoint = add_checkpoint(
            session,
            job,
            step=3,
            kind="epoch",
            digest="d" * 64,
            folder=None,
            name=model_name(job.model, job.suffix, job.id, step=3),
            adapter_sha256=early.sha256,
            metrics={"step": 3, "train_loss": 0.5},
        )
        if state in (State.SIGNING, State.HELD, State.SUCCEEDED):
            job.adapter_sha256 = final.sha256
            job.adapter_bytes = final.size_bytes
            job.fine_tuned_model = model_name(job.model, job.suffix, job.id)
            result = add_file(
                session,
                project_id=tenant.project_id,
                filename="adapter.zip",
                purpose=RESULTS,
                stored=final,
                job_id=job.id,
            )
            job.result_files = [result.id]
            record_end(session, work, final)
        session.flush()
        return Released(
            job_id=job_id,
            model=model_name(job.model, job.suffix, job.id),
            adapter=adapter,
            checkpoint_id=checkpoint.id,
            checkpoint=str(checkpoint.name),
            checkpoint_adapter=checkpoint_adapter,
            results=tuple(job.result_files),
        )


def record_end(session: Session, work: Work, adapter: storage.Stored) -> None:
    """Write what a worker would have written last, so that the notary can sign for the adapter."""
    created = json.loads(next(iterate_leaves(session, work.id)))["body"]
    base = {"name": created["base_model"], "revision": None, "sha256": created["base_model_sha256"]}
    bodies: dict[str, dict[str, Any]] = {
        "job.start": {
            "from_step": 0,
            "checkpoint_sha256": None,
            "spec": created["spec"],
            "environment": {"python": "3.11.7"},
            "device": "cpu",
            "micro_batch_tokens": 4096,
        },
        "adapter.published": {
            "step": 3,
            "zip_sha256": adapter.sha256,
            "bytes": adapter.size_bytes,
            "files": {"adapter_model.safetensors": "8" * 64},
            "base": base,
            "canary": {"prompt_ids": [1], "continuation_ids": [2], "tuned": [-0.5], "base": [-2.5]},
            "compute": {
                "parameters": 1000,
                "adapter_parameters": 10,
                "layers": 2,
                "hidden_size": 8,
                "reference_tokens": 100,
                "reference_squares": 1000,
                "training_tokens": 100,
                "training_squares": 1000,
            },
        },
        "job.end": {"state": "succeeded", "error": None, "steps": 3, "trained_tokens": 30},
    }
    for kind, body in bodies.items():
        append_leaf(session, work.id, epoch=work.epoch, kind=kind, body=body)


def names(tenant: Tenant) -> list[str]:
    """Return the models that a tenant sees, but for the miniature, which other tests may have installed."""
    return [model.id for model in tenant.openai.models.list() if model.id != "miniature"]
