"""The rules of jobs: what a request becomes, when it may start, how it is cancelled."""

import secrets
from typing import Any

from sqlalchemy.orm import Session

from app import queue
from app.audit.repository import append_leaf
from app.auth import Caller
from app.base_models.repository import get_base_model, list_base_models
from app.critics.repository import get_critic, get_newest_critic
from app.domain.job import OWNED, TERMINAL, Desired, State, WorkKind
from app.domain.ledger import digest_of
from app.domain.safety_policy import SafetyPolicy
from app.domain.training_spec import (
    ActivationCritic,
    ConstantCritic,
    Hyperparameters,
    Safety,
    TrainingOptions,
    resolve,
)
from app.errors import Conflict, InvalidRequest, NotFound
from app.files.repository import get_file
from app.jobs import repository
from app.jobs.schemas import JobCreate
from app.models.base import new_id
from app.models.base_model import BaseModel, Critic
from app.models.file import File
from app.models.job import Job
from app.models.work import Work
from app.work import repository as work_repository
from app.work import service as work_service


def create_job(
    session: Session, caller: Caller, policy: SafetyPolicy, policy_digest: str, body: JobCreate
) -> Job:
    """Create a job and announce it, or leave it validating while its files are still being checked."""
    policy.check(body.safety)
    base = _usable_base(session, body)
    safety, critic = _choose_critic(session, base, body.safety)
    files = [_usable_file(session, caller, "training_file", body.training_file)]
    if body.validation_file is not None:
        files.append(_usable_file(session, caller, "validation_file", body.validation_file))
    ready = all(file.status == "processed" for file in files)
    work = work_repository.add_work(
        session,
        work_id=new_id("ftjob-"),
        kind=WorkKind.TRAIN,
        queue="gpu",
        project_id=caller.project_id,
        args={"actor": caller.key_id},
        state=State.QUEUED if ready else State.VALIDATING,
    )
    job = Job(
        id=work.id,
        project_id=caller.project_id,
        model=base.name,
        training_file=body.training_file,
        validation_file=body.validation_file,
        critic_id=critic.id if critic else None,
        suffix=body.suffix,
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        job_metadata=body.metadata,
        request={
            "hyperparameters": body.effective_hyperparameters().model_dump(),
            "training": body.training.model_dump(),
            "safety": safety.model_dump(),
        },
        step=0,
        result_files=[],
        created_at=work.created_at,
    )
    session.add(job)
    session.flush()
    append_leaf(
        session,
        job.id,
        epoch=work.epoch,
        kind="job.created",
        body=_created_body(job, base, critic, files, caller.key_id, policy_digest),
    )
    repository.add_event(session, job, f"Created fine-tuning job: {job.id}")
    if ready:
        start_validated(session, job, files[0])
    else:
        repository.add_event(session, job, "Validating training file: " + body.training_file)
    session.refresh(job)
    return job


def start_validated(session: Session, job: Job, training_file: File) -> None:
    """Resolve the job's numbers, now that its data is known to be good, and announce it."""
    base = get_base_model(session, job.model)
    if base is None or training_file.rows is None:
        raise ValueError(f"{job.id} cannot start: its base model or its row count is missing")
    spec = resolve(
        hyperparameters=Hyperparameters.model_validate(job.request["hyperparameters"]),
        options=TrainingOptions.model_validate(job.request["training"]),
        safety=job.request["safety"],
        seed=job.seed,
        rows=training_file.rows,
        hidden_size=base.hidden_size,
        max_position_embeddings=base.max_position_embeddings,
    )
    job.spec = spec.model_dump(mode="json")
    work = session.get_one(Work, job.id)
    if work.state == State.VALIDATING:
        work_repository.move(session, work, State.QUEUED)
    repository.add_event(session, job, "Files validated, moving job to queued state")
    work_repository.mark_knocked(session, job.id)
    queue.enqueue(session, work.queue, job.id)


def cancel_job(session: Session, caller: Caller, job_id: str) -> Job:
    """Cancel at once what nobody owns; ask the owner of the rest, who obeys at the next step."""
    job = get_job(session, caller.project_id, job_id)
    work = job.work
    # Writing comes first, because it waits for whoever is just changing the row; only then is its state known.
    work_repository.set_desired(session, work.id, Desired.CANCEL)
    session.refresh(work)
    state = State(work.state)
    if state in TERMINAL:
        raise Conflict(
            f"the job {job.id} has ended as {state}; only a job that has not ended can be cancelled",
            code="job_ended",
        )
    work.args = {**work.args, "cancelled_by": caller.key_id}
    session.flush()
    if state in OWNED:
        repository.add_event(session, job, "Cancellation requested; the job stops after its current step")
    else:
        # Nobody owns it: take it over, so that a worker which is just claiming it is fenced.
        if not work_repository.take_over(session, work):
            raise Conflict(f"the job {job.id} is just starting; send the cancellation again")
        work_service.end(session, work, State.CANCELLED, None)
    session.refresh(job)
    return job


def get_job(session: Session, project_id: str, job_id: str) -> Job:
    """Return a job of the project. Raises NotFound."""
    job = repository.get_job(session, project_id, job_id)
    if job is None:
        raise NotFound(
            f"no fine-tuning job has the id {job_id!r} in this project", param="fine_tuning_job_id"
        )
    return job


def get_job_critic(session: Session, job: Job) -> Critic | None:
    """Return the critic that measures this job."""
    return get_critic(session, job.critic_id) if job.critic_id else None


def _usable_base(session: Session, body: JobCreate) -> BaseModel:
    base = get_base_model(session, body.model)
    if base is None:
        known = ", ".join(each.name for each in list_base_models(session)) or "none yet (tether models add)"
        raise InvalidRequest(
            f"model: no base model is called {body.model!r}; base models: {known}",
            param="model",
            code="model_not_found",
        )
    wanted = body.training.max_seq_length
    if wanted != "auto" and wanted > base.max_position_embeddings:
        raise InvalidRequest(
            f"training.max_seq_length: found {wanted}; the base model {base.name!r} reads at most"
            f" {base.max_position_embeddings} tokens",
            param="training.max_seq_length",
        )
    return base


def _choose_critic(session: Session, base: BaseModel, safety: Safety) -> tuple[Safety, Critic | None]:
    """Return the safety object with its critic named, and that critic where it is a fitted one."""
    wanted = safety.critic
    newest = get_newest_critic(session, base)
    if wanted is None and newest is not None:
        wanted = ActivationCritic(id=newest.id)
    if not isinstance(wanted, ActivationCritic):
        return safety.model_copy(update={"critic": wanted}), None
    critic = newest if wanted.id is None else get_critic(session, wanted.id)
    if critic is None or critic.base_digest != base.digest:
        found = "none was fitted yet" if wanted.id is None else f"{wanted.id!r} is not one"
        raise InvalidRequest(
            f"safety.critic: the base model {base.name!r} needs an activation critic that was fitted for it, and"
            f" {found}; fit one with: tether critics fit --base {base.name} --data FILE",
            param="safety.critic.id" if wanted.id else "safety.critic",
            code="critic_not_found",
        )
    return safety.model_copy(update={"critic": ActivationCritic(id=critic.id)}), critic


def _usable_file(session: Session, caller: Caller, param: str, file_id: str) -> File:
    file = get_file(session, caller.project_id, file_id)
    if file is None:
        raise InvalidRequest(
            f"{param}: no file has the id {file_id!r} in this project", param=param, code="file_not_found"
        )
    if file.purpose != "fine-tune":
        raise InvalidRequest(
            f"{param}: {file_id} has the purpose {file.purpose!r}; expected 'fine-tune'", param=param
        )
    if file.status == "error":
        raise InvalidRequest(
            f"{param}: {file_id} cannot be trained on: {file.status_details}",
            param=param,
            code="invalid_training_file",
        )
    return file


def _created_body(
    job: Job, base: BaseModel, critic: Critic | None, files: list[File], actor: str, policy_digest: str
) -> dict[str, Any]:
    spec = {**job.request, "seed": job.seed}
    return {
        "spec": spec,
        "spec_sha256": digest_of(spec),
        "training_sha256": files[0].sha256,
        "training_rows": files[0].rows,
        "validation_sha256": files[1].sha256 if len(files) > 1 else None,
        "base_model": base.name,
        "base_model_sha256": base.digest,
        "critic": _critic_body(job, critic),
        "policy_sha256": policy_digest,
        "actor": actor,
    }


def _critic_body(job: Job, critic: Critic | None) -> dict[str, Any] | None:
    if critic is not None:
        return {"id": critic.id, "sha256": critic.digest, "low": critic.low, "high": critic.high}
    chosen = job.request["safety"]["critic"]
    if chosen is None:
        return None
    digest = ConstantCritic.model_validate(chosen).digest()
    return {"id": "constant", "sha256": digest, "low": None, "high": None}
