"""Exporting a job to MLflow, a round at a time: what is new goes out, and the work goes back to the queue.

A round may be done twice and changes nothing by it: the run is found again by the export's id, and a batch of metrics
keeps the time that it was first sent with. While the server is away, rounds come ever more seldom.
"""

import logging
import math
from typing import Any

from app.database import read_only, unit_of_work
from app.domain.job import TERMINAL, State
from app.jobs import repository as jobs
from app.models.base import utc_now
from app.models.job import Job
from app.work import repository
from app.work import service as work_service
from worker.context import Context
from worker.mlflow_client import BATCH_METRICS, MAX_VALUE, MlflowClient, MlflowUnavailable

log = logging.getLogger(__name__)

METRICS = (
    *("loss", "nll", "kl", "risk_mean", "risk_max", "alpha_mean", "beta_mean", "beta_max", "floor"),
    *("token_accuracy", "grad_norm", "lr", "anchor_kl", "drift", "valid_loss", "valid_mean_token_accuracy"),
)
"""The numbers of a step that become metrics."""
STEPS = BATCH_METRICS // len(METRICS)
LONGEST_PAUSE_S = 3600.0
RUN_STATUS = {State.SUCCEEDED: "FINISHED", State.FAILED: "FAILED", State.CANCELLED: "KILLED"}


def export_job(context: Context) -> None:
    """Send what is new of a job; after its end, all of it, and end the work."""
    context.lease.move(State.RUNNING)
    try:
        ended = _send_round(context)
    except MlflowUnavailable as error:
        _wait_for_server(context, str(error))
        return
    with unit_of_work(context.database) as session:
        work = context.lease.load(session)
        repository.note_progress(session, work.id, work.epoch)
        if ended:
            job = jobs.load_job(session, work.args["job"])
            experiment = work.args["integration"]["mlflow"]["experiment"]
            jobs.add_event(session, job, f"Exported to the MLflow experiment {experiment!r}")
            repository.move(session, work, State.FINALISING)
            repository.move(session, work, State.SUCCEEDED)
        else:
            work.infrastructure_failures = 0
            session.flush()
            work_service.put_back(session, work, pause_s=context.settings.requeue_after_s)


def _send_round(context: Context) -> bool:
    """Send every step that is there, and say whether the job had ended before the last of them was read."""
    with read_only(context.database) as session:
        work = repository.get_work(session, context.lease.work_id)
        assert work is not None  # noqa: S101  (It was claimed, and work is never deleted.)
        wanted = work.args["integration"]["mlflow"]
        job = jobs.load_job(session, work.args["job"])
        state = State(job.work.state)
        times = (job.created_at, job.work.finished_at or utc_now())
        start_ms, end_ms = (int(time.timestamp() * 1000) for time in times)
        params, tags = _params(job), _tags(job)
        own = {**wanted.get("tags", {}), "tether.export": work.id, "tether.job": job.id}
        name = wanted.get("run_name", job.id)
    ended = state in TERMINAL
    with MlflowClient(context.settings) as mlflow:
        experiment_id = mlflow.ensure_experiment(wanted["experiment"])
        run_id = mlflow.find_run(experiment_id, "tether.export", own["tether.export"])
        if run_id is None:
            run_id = mlflow.create_run(experiment_id, name=name, start_ms=start_ms, tags=own)
        if params:
            mlflow.log_batch(run_id, params=params)
        while metrics := _next_batch(context, whole=ended):
            mlflow.log_batch(run_id, metrics=metrics)
            _commit_batch(context, until=metrics[-1]["step"])
            context.check()
        mlflow.log_batch(run_id, tags=tags)
        if ended:
            mlflow.update_run(run_id, status=RUN_STATUS[state], end_ms=end_ms)
    return ended


def _next_batch(context: Context, *, whole: bool) -> list[dict[str, Any]]:
    """Return the metrics of the next steps, and keep their time before anybody sees it.

    While the job runs, its newest step stays behind: what validation and monitor find is added to it a moment later.
    """
    with unit_of_work(context.database) as session:
        work = context.lease.load(session)
        job = jobs.load_job(session, work.args["job"])
        steps = [
            step
            for step in jobs.list_steps(session, job, after=work.args["after"], limit=STEPS)
            if whole or step.step < job.step
        ]
        if steps and work.args["at_ms"] is None:
            work.args = {**work.args, "at_ms": int(utc_now().timestamp() * 1000)}
        return [
            {"key": name, "value": value, "timestamp": work.args["at_ms"], "step": step.step}
            for step in steps
            for name, value in {**step.record, **(step.validation or {})}.items()
            if name in METRICS and value is not None and math.isfinite(value)
        ]


def _commit_batch(context: Context, *, until: int) -> None:
    with unit_of_work(context.database) as session:
        work = context.lease.load(session)
        work.args = {**work.args, "after": until, "at_ms": None}


def _params(job: Job) -> dict[str, str]:
    """Return what the job was asked for, once it is resolved: MLflow takes a parameter only once."""
    if job.spec is None:
        return {}
    safety: dict[str, Any] = job.spec["safety"]
    values: dict[str, Any] = {
        "model": job.model,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        **{name: value for name, value in job.spec.items() if not isinstance(value, dict | list)},
        **{f"safety.{name}": value for name, value in safety.items() if not isinstance(value, dict | list)},
    }
    return {name: str(value)[:MAX_VALUE] for name, value in values.items() if value is not None}


def _tags(job: Job) -> dict[str, str]:
    """Return what says where adapter and evidence are and by which digests they are known."""
    path = f"/v1/fine_tuning/jobs/{job.id}"
    is_released = job.work.state == State.SUCCEEDED
    values = {
        "status": job.work.state,
        "fine_tuned_model": job.fine_tuned_model if is_released else None,
        "adapter": f"{path}/adapter" if is_released and job.adapter_sha256 else None,
        "adapter_sha256": job.adapter_sha256 if is_released else None,
        "evidence": f"{path}/evidence",
        "ledger_size": job.work.ledger_size,
        "ledger_head": job.work.ledger_head,
        "error": job.work.error["code"] if job.work.error else None,
    }
    return {f"tether.{name}": str(value) for name, value in values.items() if value is not None}


def _wait_for_server(context: Context, reason: str) -> None:
    """Give the work back, to be claimed again later and later; the job's log says so the first time."""
    log.warning("%s: %s", context.lease.work_id, reason)
    with unit_of_work(context.database) as session:
        work = context.lease.load(session)
        failures = work.infrastructure_failures
        if failures == 0:
            job = jobs.load_job(session, work.args["job"])
            jobs.add_event(session, job, f"The export waits: {reason}; it is tried again", level="warn")
        pause_s = pause_after(failures, context.settings.requeue_after_s)
        work_service.postpone(session, context.settings, work, reason=reason, pause_s=pause_s)


def pause_after(failures: int, first_s: float) -> float:
    """Return the seconds to wait after so many failures before this one: twice as long each time, within a bound."""
    return min(first_s * 2.0 ** min(failures, 12), LONGEST_PAUSE_S)
