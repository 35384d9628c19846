"""The rules of reports: when one is made, who may see which risks, and rows that are left out by them."""

import re
import statistics
import tempfile
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import queue, storage
from app.auth import Caller
from app.base_models.service import find_base_model
from app.critics.repository import get_newest_critic
from app.database import Database, read_only, unit_of_work
from app.domain.dataset import MAX_LINE_BYTES
from app.domain.job import WorkKind
from app.domain.ledger import digest_of
from app.domain.row_risks import EDGES, Visibility, unpack_scores
from app.domain.safety_policy import SafetyPolicy
from app.domain.safety_spec import ActivationCritic, without_judge
from app.errors import Conflict, InvalidRequest, NotFound, TetherError
from app.files.repository import get_file as get_client_file
from app.files.service import TRAINING, add_file, get_file, note_unwanted
from app.idempotency import Attempt, find_reply, once
from app.integrations.service import check_integrations, start_exports
from app.jobs.safety import list_fitted
from app.jobs.schemas import JobCreate
from app.jobs.service import create_job, get_job, get_job_critics, plan_job
from app.models.base import new_id, utc_now
from app.models.base_model import Critic
from app.models.file import File
from app.models.job import Event, Job
from app.models.report import Report, reading_of
from app.policies.service import InForce, policy_in_force
from app.quotas.service import take_storage
from app.reports import repository
from app.reports.schemas import Exclusion, exclusion_to_wire, status_of
from app.settings import Settings
from app.work import repository as work_repository

VERSION = 1
"""Of what a report says; another one makes every report anew."""
MAX_UNFINISHED = 16
"""Reports of a project that wait or are being made."""
TIMED_JOBS = 20
MAX_NAME = 255
MAX_NAMED_ROWS = 1000
"""Rows that a file names of those that were left out of it."""


def request_report(
    session: Session,
    caller: Caller,
    policy: SafetyPolicy,
    body: JobCreate,
    *,
    kind: str,
    judge_model: str,
    risk: bool = True,
    retry: bool = False,
) -> Report:
    """Return the report of a kind on what a job of this body would be; ask for it where nobody has yet.

    With `retry` a report that failed is asked for again. Raises as creating the job would, and Conflict where a file
    is still being checked or too many reports are under way.
    """
    plan = plan_job(session, caller, policy, body, judge_model=judge_model)
    reading = without_judge(plan.spec.safety.critic) if risk else None
    validation = plan.files[1] if len(plan.files) > 1 else None
    args: dict[str, Any] = {
        "kind": kind,
        "training_file": plan.files[0].id,
        "data_sha256": plan.files[0].sha256,
        "validation_file": validation.id if validation else None,
        "validation_sha256": validation.sha256 if validation else None,
        "base_model": plan.base.name,
        "reading": reading.model_dump() if reading else None,
        # Where one fitted critic alone measures, so that its scores are found again.
        "critic": reading.id if isinstance(reading, ActivationCritic) else None,
        "spec": plan.spec.model_dump(mode="json"),
        # The spec has what `auto` came to.
        "asked_threshold": getattr(body.safety, "threshold", None),
        "alignment_rows": plan.chosen.alignment.rows if plan.chosen.alignment else 0,
    }
    digest = digest_of({"version": VERSION, "base_sha256": plan.base.digest, **args})
    known = repository.find_report(session, caller.project_id, digest)
    if known is not None and not (retry and status_of(known) in ("failed", "cancelled")):
        return known
    if repository.count_unfinished(session, caller.project_id) >= MAX_UNFINISHED:
        raise Conflict(
            f"{MAX_UNFINISHED} reports of this project are being made; wait for one of them",
            code="too_many_reports",
        )
    if known is not None:
        # The failed one keeps its place in the table of work and gives its name in this one to the next.
        known.digest = digest_of([digest, known.id])
        session.flush()
    try:
        with session.begin_nested():
            return _add_report(session, caller, digest, args)
    except IntegrityError:
        # Somebody else asked for the same thing at the same moment.
        known = repository.find_report(session, caller.project_id, digest)
        if known is None:
            raise
        return known


def _add_report(session: Session, caller: Caller, digest: str, args: dict[str, Any]) -> Report:
    work = work_repository.add_work(
        session,
        work_id=new_id("report_"),
        kind=WorkKind.REPORT,
        queue="cpu",
        project_id=caller.project_id,
        args=args,
    )
    report = Report(id=work.id, project_id=caller.project_id, digest=digest, created_at=utc_now())
    session.add(report)
    session.flush()
    queue.enqueue(session, work.queue, work.id)
    return report


def forget_texts(database: Database) -> None:
    """Empty the reports on files that were deleted: their previews are text of these files."""
    with read_only(database) as session:
        if not repository.list_orphans(session):
            return
    with unit_of_work(database) as session:
        for report in repository.list_orphans(session):
            report.body = report.scores = None
            # The same bytes, uploaded again, get a report of their own.
            report.digest = digest_of([report.digest, report.id])


def get_report(session: Session, project_id: str, report_id: str) -> Report:
    """Return a report of the project. Raises NotFound."""
    report = repository.get_report(session, project_id, report_id)
    if report is None or get_client_file(session, project_id, report.work.args["training_file"]) is None:
        raise NotFound(
            f"no report has the id {report_id!r} in this project, or its file was deleted", param="report_id"
        )
    return report


def read_risks(session: Session, caller: Caller, policy: SafetyPolicy, report: Report) -> Visibility:
    """Return what the caller may see of a report's risks, and note that it did."""
    visibility = policy.risk_visibility
    if report.body is not None and report.body["by_visibility"][visibility]["risk"] is not None:
        repository.add_risk_read(session, report, key_id=caller.key_id, visibility=visibility, use="read")
    return visibility


def get_report_critics(session: Session, report: Report) -> list[Critic]:
    """Return the fitted critics that measured a report's risks."""
    return list_fitted(session, reading_of(report.work.args))


class _Pace(NamedTuple):
    """How an earlier job spent its time."""

    tokens_a_second: float
    """Trained tokens, between its first step and its last one."""
    around_s: float
    """Before the first step, and after the last one: loading, the reference pass, publishing, the signature."""


def estimate_time(session: Session, report: Report) -> dict[str, Any]:
    """Return how long the job may run, from the project's own jobs on the same base model, if there are any.

    What comes before the first step and after the last one is told apart from the steps: it is nearly the same for a
    short job and for a long one.
    """
    base_model: str = report.work.args["base_model"]
    jobs = repository.list_finished_jobs(session, report.project_id, base_model, TIMED_JOBS)
    measured = repository.find_measured(session, [job.id for job in jobs])
    paces = [
        pace
        for job in jobs
        if job.id in measured and (pace := _measure_pace(job, *measured[job.id])) is not None
    ]
    if not paces or report.body is None:
        return {
            "seconds": None,
            "reason": f"no job of this project on {base_model!r} of several steps has succeeded yet, in one go",
            "jobs": 0,
        }
    speed = statistics.median(pace.tokens_a_second for pace in paces)
    around_s = statistics.median(pace.around_s for pace in paces)
    tokens: int = report.body["training"]["trained_tokens"]
    reason = (
        f"{around_s:.1f} s to start and to finish, and {tokens} trained tokens at {speed:.1f} a second: the medians of"
        " earlier jobs"
    )
    return {"seconds": round(around_s + tokens / speed, 1), "reason": reason, "jobs": len(paces)}


def _measure_pace(job: Job, first: Event, last: Event) -> _Pace | None:
    """Return the pace of a job between two of its events; None for one that was interrupted, or has too few steps."""
    work = job.work
    if work.started_at is None or work.finished_at is None or work.attempt > 1:
        return None
    if not job.trained_tokens or not job.total_steps or first.data is None or last.data is None:
        return None
    steps_s = (last.created_at - first.created_at).total_seconds()
    steps = last.data["step"] - first.data["step"]
    if steps <= 0 or steps_s <= 0:
        return None
    whole_s = (work.finished_at - work.started_at).total_seconds()
    # The first event tells of a step that had its time before.
    all_steps_s = steps_s * job.total_steps / steps
    return _Pace(job.trained_tokens / all_steps_s, max(0.0, whole_s - all_steps_s))


def exclude_rows(
    database: Database,
    settings: Settings,
    caller: Caller,
    installation: InForce,
    attempt: Attempt,
    file_id: str,
    body: Exclusion,
) -> dict[str, Any]:
    """Make a new file without some rows of this one, run a job again on it where one is named, and return the reply.

    The bytes are copied between transactions, so that nobody waits for them; the job is held to the policy that is in force
    when it is created. `installation` is the one of projects that were given none.
    """
    earlier = find_reply(database, attempt, body)
    if earlier is not None:
        return earlier
    with unit_of_work(database) as session:
        source = get_file(session, caller.project_id, file_id)
        if source.purpose != TRAINING or source.status != "processed" or source.rows is None:
            raise InvalidRequest(
                f"{file_id} is no training file that was found good; only of such can rows be left out",
                param="file_id",
            )
        in_force, _ = policy_in_force(session, caller.project_id, installation)
        excluded, why = _choose_rows(session, caller, in_force, source, body)
        if body.run_again is not None:
            get_job(session, caller.project_id, body.run_again)
    if len(excluded) >= source.rows:
        raise InvalidRequest(f"all {source.rows} rows would be left out; nothing would be left to train on")
    stored = _store_kept(database, settings, caller.project_id, source, excluded)

    def create() -> dict[str, Any]:
        take_storage(session, settings, caller.project_id, stored.size_bytes)
        file = _add_kept(session, source, stored)
        file.rows = (source.rows or 0) - len(excluded)
        file.format = source.format
        rows = sorted(excluded)
        file.derived_from = {
            "file": source.id,
            "sha256": source.sha256,
            "excluded": len(rows),
            "excluded_rows": rows[:MAX_NAMED_ROWS],
            **why,
        }
        if body.run_again is None:
            return exclusion_to_wire(file, None, ())
        policy = policy_in_force(session, caller.project_id, installation)
        job = _run_again(session, settings, caller, policy, body.run_again, file.id)
        return exclusion_to_wire(file, job, get_job_critics(session, job))

    try:
        with unit_of_work(database) as session:
            return once(session, attempt, body, create)
    except TetherError:
        note_unwanted(database, caller.project_id, name_kept(source.filename), TRAINING, stored)
        raise


def _store_kept(
    database: Database, settings: Settings, project_id: str, source: File, excluded: Collection[int]
) -> storage.Stored:
    with tempfile.TemporaryFile() as kept:
        with storage.open_stored(settings.storage, source.sha256) as stored:
            _copy_rows(stored, kept, excluded)
        # Bytes that the project has no room for are not stored first; two files at once are told apart later.
        with read_only(database) as session:
            take_storage(session, settings, project_id, kept.tell(), lock=False)
        kept.seek(0)
        return storage.store_stream(settings.storage, kept, max_bytes=settings.max_file_bytes)


def _add_kept(session: Session, source: File, stored: storage.Stored) -> File:
    return add_file(
        session,
        project_id=source.project_id,
        filename=name_kept(source.filename),
        purpose=TRAINING,
        stored=stored,
    )


def name_kept(filename: str) -> str:
    """Return the name of a file of which some rows were left out: `rows.jsonl` becomes `rows-kept.jsonl`."""
    path = PurePosixPath(filename)
    number = re.search(r"-kept(\d*)$", path.stem)
    again = "-kept" if number is None else f"-kept{int(number[1] or 1) + 1}"
    stem = path.stem if number is None else path.stem[: number.start()]
    return f"{stem[: MAX_NAME - len(again) - len(path.suffix)]}{again}{path.suffix}"


def _choose_rows(
    session: Session, caller: Caller, policy: SafetyPolicy, source: File, body: Exclusion
) -> tuple[frozenset[int], dict[str, Any]]:
    if body.rows is not None:
        beyond = [row for row in body.rows if row >= (source.rows or 0)]
        if beyond:
            raise InvalidRequest(
                f"rows: {source.id} has no row {beyond[0]}; its rows are 0 to {(source.rows or 0) - 1}",
                param="rows",
            )
        return frozenset(body.rows), {}
    if body.risk_above is None or body.model is None:
        raise ValueError("an exclusion without rows and without a risk")
    _check_visible(policy, body.risk_above)
    base = find_base_model(session, body.model)
    critic = get_newest_critic(session, base)
    report = None
    if critic is not None:
        report = repository.find_scored(
            session, caller.project_id, sha256=source.sha256, base_model=base.name, critic_id=critic.id
        )
    if critic is None or report is None or report.scores is None:
        raise Conflict(
            f"the risks of {source.id} were not measured by the newest critic of {base.name!r} yet; ask for"
            f" GET /v1/files/{source.id}/report?model={base.name}, wait until it has succeeded, and send this again",
            code="report_not_ready",
        )
    repository.add_risk_read(
        session, report, key_id=caller.key_id, visibility=policy.risk_visibility, use="exclude"
    )
    chosen = frozenset(row for row, s in enumerate(unpack_scores(report.scores)) if s >= body.risk_above)
    if not chosen:
        raise InvalidRequest(
            f"risk_above: no row of {source.id} has a risk of {body.risk_above:g} or more", param="risk_above"
        )
    return chosen, {"risk_above": body.risk_above, "critic": critic.id, "model": base.name}


def _check_visible(policy: SafetyPolicy, risk_above: float) -> None:
    if policy.risk_visibility == "none":
        raise InvalidRequest(
            "risk_above: the operator's policy shows no risks of rows, and leaving rows out by their risk would show them;"
            " name the rows",
            param="risk_above",
        )
    if policy.risk_visibility == "bucketed" and risk_above not in EDGES:
        edges = ", ".join(f"{edge:g}" for edge in EDGES[:-1])
        raise InvalidRequest(
            f"risk_above: found {risk_above:g}; the operator's policy shows risks by bucket, so it must be one of {edges}",
            param="risk_above",
        )


def _copy_rows(source: BinaryIO, target: BinaryIO, excluded: Collection[int]) -> None:
    row = 0
    while line := source.readline(MAX_LINE_BYTES + 2):
        if row not in excluded:
            target.write(line if line.endswith(b"\n") else line + b"\n")
        row += 1


def _run_again(
    session: Session,
    settings: Settings,
    caller: Caller,
    policy: InForce,
    job_id: str,
    file_id: str,
) -> Job:
    old = get_job(session, caller.project_id, job_id)
    body = JobCreate.model_validate(
        {
            # As it was asked for: the base model, or the fine-tuned one that the job went on from.
            "model": old.lineage[0]["model"] if old.lineage else old.model,
            "training_file": file_id,
            "validation_file": old.validation_file,
            "suffix": old.suffix,
            "seed": old.seed,
            "metadata": old.job_metadata,
            "integrations": old.work.args.get("integrations"),
            "method": {
                "type": "supervised",
                "supervised": {"hyperparameters": old.request["hyperparameters"]},
            },
            "training": old.request["training"],
            "safety": old.request["safety"],
            "priority": old.work.priority,
        }
    )
    check_integrations(settings, body.integrations)
    job = create_job(session, caller, *policy, body, settings=settings)
    start_exports(session, job, body.integrations)
    return job
