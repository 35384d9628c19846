"""The rules of jobs: what a request becomes, when it may start, how it is cancelled."""

import secrets
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from sqlalchemy.orm import Session

from app import queue
from app.audit.repository import append_leaf
from app.auth import Caller, require
from app.base_models.repository import get_base_model
from app.base_models.service import find_base_model
from app.base_models.tuned import TunedModel
from app.domain.gate import GATE
from app.domain.job import OWNED, RECORDED, Desired, State, WorkKind
from app.domain.ledger import digest_of
from app.domain.safety_policy import SafetyPolicy
from app.domain.safety_spec import AnySafety, Safety
from app.domain.scopes import Scope
from app.domain.training_spec import Hyperparameters, TrainingOptions, TrainingSpec, resolve
from app.errors import Conflict, Gone, InvalidRequest, NotFound
from app.files.repository import get_file
from app.jobs import repository
from app.jobs.approval import check_other_person
from app.jobs.lineage import adapter_shape, extend_lineage, find_parent, parent_body
from app.jobs.safety import Chosen, automatic_threshold, choose, critic_digest, list_fitted
from app.jobs.schemas import JobCreate
from app.models.base import new_id
from app.models.base_model import BaseModel, Critic
from app.models.file import File
from app.models.job import Job
from app.models.safety_set import SafetySet
from app.models.work import Work
from app.notary.repository import add_event
from app.policies.service import pin_gate
from app.quotas.service import take_place_in_queue
from app.settings import Settings
from app.work import repository as work_repository
from app.work import service as work_service
from app.work.fair_queue import note_turn

_SAFETY: TypeAdapter[AnySafety] = TypeAdapter(Safety)


def create_job(
    session: Session,
    caller: Caller,
    policy: SafetyPolicy,
    policy_digest: str,
    body: JobCreate,
    *,
    settings: Settings,
) -> Job:
    """Create a job and announce it, or leave it validating while its files are still being checked.

    Raises QuotaExceeded where the project has no room for one more.
    """
    take_place_in_queue(session, settings, caller.project_id)
    judge_model = settings.judge_model
    parent, base, chosen, files = _check_request(session, caller, policy, body, judge_model)
    ready = all(file.status == "processed" for file in files)
    work = work_repository.add_work(
        session,
        work_id=new_id("ftjob-"),
        kind=WorkKind.TRAIN,
        queue="gpu",
        project_id=caller.project_id,
        args={"actor": caller.key_id},
        state=State.QUEUED if ready else State.VALIDATING,
        priority=body.priority,
    )
    job = Job(
        id=work.id,
        project_id=caller.project_id,
        model=base.name,
        training_file=body.training_file,
        validation_file=body.validation_file,
        critic_id=chosen.fitted[0].id if chosen.fitted else None,
        suffix=body.suffix,
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        job_metadata=body.metadata,
        request={
            "hyperparameters": body.effective_hyperparameters().model_dump(),
            "training": adapter_shape(body.training, parent).model_dump(),
            "safety": chosen.safety.model_dump(),
        },
        parent_sha256=parent.adapter_sha256 if parent else None,
        lineage=extend_lineage(parent),
        step=0,
        result_files=[],
        gate=pin_gate(policy, policy_digest),
        created_at=work.created_at,
    )
    session.add(job)
    session.flush()
    append_leaf(
        session,
        job.id,
        epoch=work.epoch,
        kind="job.created",
        body={
            **_created_body(job, base, chosen, files),
            "critic": _critic_body(chosen, judge_model),
            "policy_sha256": policy_digest,
            "actor": caller.key_id,
            "parent": parent_body(parent),
        },
    )
    repository.add_event(session, job, f"Created fine-tuning job: {job.id}")
    if ready:
        start_validated(session, job, files[0])
        note_turn(session, settings, work)
    else:
        repository.add_event(session, job, "Validating training file: " + body.training_file)
    session.refresh(job)
    return job


class _Checked(NamedTuple):
    """What a request names, found and allowed."""

    parent: TunedModel | None
    base: BaseModel
    chosen: Chosen
    files: list[File]
    """The training file, and the validation file where there is one."""


def _check_request(
    session: Session, caller: Caller, policy: SafetyPolicy, body: JobCreate, judge_model: str
) -> _Checked:
    policy.check(body.safety)
    parent = find_parent(session, caller, body)
    base = _usable_base(session, body, parent)
    chosen = choose(session, base, body.safety, judge_model)
    policy.check_categories(chosen.safety)
    files = [_usable_file(session, caller, "training_file", body.training_file)]
    if body.validation_file is not None:
        files.append(_usable_file(session, caller, "validation_file", body.validation_file))
    return _Checked(parent, base, chosen, files)


class Plan(NamedTuple):
    """What a job of a request would be."""

    base: BaseModel
    chosen: Chosen
    files: list[File]
    """The training file, and the validation file where there is one."""
    spec: TrainingSpec


def plan_job(
    session: Session, caller: Caller, policy: SafetyPolicy, body: JobCreate, *, judge_model: str = ""
) -> Plan:
    """Return what a job of this body would be, without creating it; a seed that is left open is 0.

    Raises as `create_job` does, and Conflict while one of the files is still being checked.
    """
    parent, base, chosen, files = _check_request(session, caller, policy, body, judge_model)
    for file in files:
        if file.rows is None:
            raise Conflict(
                f"the file {file.id} is still being checked; ask again when its status is processed",
                code="file_not_ready",
            )
    spec = resolve(
        hyperparameters=body.effective_hyperparameters(),
        options=adapter_shape(body.training, parent),
        safety=chosen.safety,
        seed=body.seed or 0,
        rows=files[0].rows or 0,
        hidden_size=base.hidden_size,
        max_position_embeddings=base.max_position_embeddings,
        critic_threshold=automatic_threshold(chosen.safety, chosen.fitted),
    )
    return Plan(base, chosen, files, spec)


def start_validated(session: Session, job: Job, training_file: File) -> None:
    """Resolve the job's numbers, now that its data is known to be good, and announce it."""
    base = get_base_model(session, job.model)
    if base is None or training_file.rows is None:
        raise ValueError(f"{job.id} cannot start: its base model or its row count is missing")
    safety = _SAFETY.validate_python(job.request["safety"])
    spec = resolve(
        hyperparameters=Hyperparameters.model_validate(job.request["hyperparameters"]),
        options=TrainingOptions.model_validate(job.request["training"]),
        safety=safety,
        seed=job.seed,
        rows=training_file.rows,
        hidden_size=base.hidden_size,
        max_position_embeddings=base.max_position_embeddings,
        critic_threshold=automatic_threshold(safety, get_job_critics(session, job)),
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
    job, state = _wish(session, caller, job_id, Desired.CANCEL, "cancelled")
    work = job.work
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


def pause_job(session: Session, caller: Caller, job_id: str) -> Job:
    """Pause at once what nobody owns; ask the owner of the rest, who saves a checkpoint after the current step."""
    job, state = _wish(session, caller, job_id, Desired.PAUSE, "paused")
    work = job.work
    if state is State.FINALISING:
        raise Conflict(
            f"the job {job.id} has done its last step and its adapter is being published; it ends by itself",
            code="job_finalising",
        )
    if state is State.PAUSED or "pause" in work.args:
        return job
    if state in OWNED:
        repository.add_event(session, job, "Pause requested; the job pauses after its current step")
    elif state is State.VALIDATING:
        repository.add_event(session, job, "Pause requested; the job pauses when its files are validated")
    elif not work_repository.take_over(session, work):
        raise Conflict(f"the job {job.id} is just starting; send the pause again")
    work_service.ask_for_pause(session, work, by=caller.key_id)
    if state is State.QUEUED:
        work_service.pause(session, work)
    session.refresh(job)
    return job


def resume_job(session: Session, caller: Caller, job_id: str) -> Job:
    """Let a paused job go on. A pause that has not begun is taken back; a job that just pauses goes on after it.

    One that the policy's gate paused waits for approval, and so for whoever may release a held job.
    """
    job, state = _wish(session, caller, job_id, Desired.RUN, "resumed")
    work = job.work
    asked = work.args.get("pause")
    if asked and asked["by"] == GATE:
        require(caller, Scope.JOBS_RELEASE)
        check_other_person(session, caller, job, needs=(Scope.JOBS_RELEASE, Scope.JOBS_WRITE))
        if "resumed_by" not in asked:
            add_event(session, "job.pause.approved", actor=caller.key_id, subject=job.id)
    if state is State.PAUSED:
        if not work_repository.take_over(session, work):
            raise Conflict(f"the job {job.id} is just being changed; send the resume again")
        work_service.resume(session, work, by=caller.key_id)
    elif asked and (state is State.PAUSING or asked["reason"]):
        work.args = {**work.args, "pause": {**asked, "resumed_by": caller.key_id}}
        session.flush()
    elif asked:
        work_service.take_back_pause(session, work)
        repository.add_event(session, job, "The pause was taken back before it began")
    session.refresh(job)
    return job


def _wish(session: Session, caller: Caller, job_id: str, desired: Desired, done: str) -> tuple[Job, State]:
    """Note what the client wants of a job, and return it with its state. Raises Conflict where it is too late."""
    job = get_job(session, caller.project_id, job_id)
    work = job.work
    # Writing comes first, because it waits for whoever is just changing the row; only then is its state known.
    work_repository.set_desired(session, work.id, desired)
    session.refresh(work)
    state = State(work.state)
    if state is State.HELD:
        raise Conflict(
            f"the job {job.id} is held by the gate of the operator's policy, and cannot be {done}; a key with the scope"
            f" {Scope.JOBS_RELEASE.value!r} releases or rejects it",
            code="job_held",
        )
    if state in RECORDED:
        raise Conflict(
            f"the job {job.id} has ended as {state}; only a job that has not ended can be {done}",
            code="job_ended",
        )
    if work.desired != desired:
        raise Conflict(
            f"the job {job.id} is being cancelled and stops after its current step; it cannot be {done}",
            code="job_cancelling",
        )
    return job, state


def get_job(session: Session, project_id: str, job_id: str) -> Job:
    """Return a job of the project. Raises NotFound."""
    job = repository.get_job(session, project_id, job_id)
    if job is None:
        raise no_job(job_id)
    return job


def no_job(job_id: str) -> NotFound:
    """Return what says that the project has no such job."""
    return NotFound(f"no fine-tuning job has the id {job_id!r} in this project", param="fine_tuning_job_id")


def check_steps_kept(job: Job) -> None:
    """Raise Gone where the records of a job's steps were pruned."""
    if job.pruned_at is not None:
        raise Gone(
            f"the records of the steps of {job.id} were pruned on {job.pruned_at:%Y-%m-%d}, as the operator keeps them for a"
            " limited time; the job's object has the means of its risk and beta, and its evidence the hashes of the records",
            code="steps_pruned",
        )


def get_job_critics(session: Session, job: Job) -> list[Critic]:
    """Return the fitted critics that measure this job or that its judge falls back on."""
    return list_fitted(session, job.request["safety"]["critic"])


def _usable_base(session: Session, body: JobCreate, parent: TunedModel | None) -> BaseModel:
    base = find_base_model(session, parent.job.model if parent else body.model)
    wanted = body.training.max_seq_length
    if wanted != "auto" and wanted > base.max_position_embeddings:
        raise InvalidRequest(
            f"training.max_seq_length: found {wanted}; the base model {base.name!r} reads at most"
            f" {base.max_position_embeddings} tokens",
            param="training.max_seq_length",
        )
    return base


def _usable_file(session: Session, caller: Caller, param: str, file_id: str) -> File:
    file = get_file(session, caller.project_id, file_id)
    if file is None:
        raise NotFound(
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


def _created_body(job: Job, base: BaseModel, chosen: Chosen, files: list[File]) -> dict[str, Any]:
    spec = {**job.request, "seed": job.seed}
    return {
        "spec": spec,
        "spec_sha256": digest_of(spec),
        "training_sha256": files[0].sha256,
        "training_rows": files[0].rows,
        "validation_sha256": files[1].sha256 if len(files) > 1 else None,
        "base_model": base.name,
        "base_model_sha256": base.digest,
        "anchors": _set_body(chosen.anchors),
        "alignment": _set_body(chosen.alignment),
    }


def _critic_body(chosen: Chosen, judge_model: str) -> dict[str, Any] | None:
    """Return what names the critic, and the points and threshold of each fitted one that it reads."""
    wanted, fitted = chosen.safety.critic, chosen.fitted
    if wanted is None:
        return None
    return {
        "id": fitted[0].id if wanted.type == "activation" else wanted.type,
        "sha256": critic_digest(wanted, fitted, judge_model),
        "fitted": [
            {
                "id": each.id,
                "sha256": each.digest,
                "low": each.low,
                "high": each.high,
                "threshold": each.threshold,
            }
            for each in fitted
        ],
    }


def _set_body(chosen: SafetySet | None) -> dict[str, Any] | None:
    return None if chosen is None else {"id": chosen.id, "sha256": chosen.sha256}
