"""The rules of evaluations: of which models, on which prompts, by which judges."""

from typing import Any

from sqlalchemy.orm import Session

from app import queue, storage
from app.auth import Caller
from app.base_models.service import find_base_model
from app.base_models.tuned import TunedModel
from app.base_models.weights import get_tuned_model
from app.database import Database, read_only, unit_of_work
from app.domain.dataset import check_prompt_lines, read_lines
from app.domain.evaluation_spec import BUILTIN_SUITES, EvaluationSpec
from app.domain.job import OWNED, TERMINAL, Desired, State, WorkKind
from app.errors import Conflict, InvalidRequest, NotFound
from app.evaluations import repository
from app.evaluations.schemas import EvaluationCreate, evaluation_to_wire
from app.files.repository import get_file
from app.files.service import DATA, refuse_rows
from app.idempotency import Attempt, find_reply, once
from app.jobs.lineage import TUNED
from app.models.base import new_id, utc_now
from app.models.evaluation import Evaluation
from app.models.file import File
from app.projects.service import get_project
from app.settings import Settings
from app.work import repository as work_repository
from app.work import service as work_service

MAX_UNFINISHED = 16
"""Evaluations of a project that wait or are under way."""


def create_evaluation(
    database: Database, settings: Settings, caller: Caller, attempt: Attempt, body: EvaluationCreate
) -> dict[str, Any]:
    """Ask for an evaluation, once for an Idempotency-Key, and return the reply.

    Raises NotFound for a model that the project may not use, InvalidRequest for prompts or judges that there are not,
    InvalidTrainingFile with every problem of the prompts, Conflict where too many evaluations are under way. The prompts
    are read between two transactions, so that nobody waits for them.
    """
    earlier = find_reply(database, attempt, body)
    if earlier is not None:
        return earlier
    check_judges(settings, body)
    with read_only(database) as session:
        _find_model(session, caller, body)
        suite = _find_suite(session, caller.project_id, body.suite)
    if suite is not None:
        with storage.open_stored(settings.storage, suite.sha256) as stream:
            found = check_prompt_lines(read_lines(stream))
        if found.problems:
            raise refuse_rows(found, "file of prompts", param="suite", code="invalid_prompt_file")
        try:
            body.decoding.check_size(found.rows)
        except ValueError as error:
            raise InvalidRequest(
                f"decoding: {error}", param="decoding", code="evaluation_too_large"
            ) from None

    def create() -> dict[str, Any]:
        evaluation = _add_evaluation(session, caller, body, suite)
        return evaluation_to_wire(evaluation, whole=True)

    with unit_of_work(database) as session:
        return once(session, attempt, body, create)


def _add_evaluation(
    session: Session, caller: Caller, body: EvaluationCreate, suite: File | None
) -> Evaluation:
    # Locked first: two requests at once cannot both take the last place.
    get_project(session, caller.project_id, lock=True)
    if repository.count_unfinished(session, caller.project_id) >= MAX_UNFINISHED:
        raise Conflict(
            f"{MAX_UNFINISHED} evaluations of this project are not finished; wait for one of them, or cancel it",
            code="too_many_evaluations",
        )
    tuned = _find_model(session, caller, body)
    work = work_repository.add_work(
        session,
        work_id=new_id("evaluation_"),
        kind=WorkKind.EVALUATE,
        queue="gpu",
        project_id=caller.project_id,
        # The bytes of the prompts stay as long as the work needs them, whatever becomes of their file.
        args={"actor": caller.key_id, "data_sha256": suite.sha256 if suite else None},
    )
    evaluation = Evaluation(
        id=work.id,
        project_id=caller.project_id,
        model=body.model,
        base_model=tuned.job.model if tuned else body.model,
        job_id=tuned.job.id if tuned else None,
        request=EvaluationSpec.model_validate(body.model_dump(exclude={"model"})).model_dump(mode="json"),
        created_at=utc_now(),
    )
    session.add(evaluation)
    session.flush()
    queue.enqueue(session, work.queue, work.id)
    session.refresh(evaluation)
    return evaluation


def check_judges(settings: Settings, body: EvaluationSpec) -> None:
    """Raise InvalidRequest for a judge that this installation does not have."""
    configured = {"openai": bool(settings.judge_url), "classifier": settings.classifier_dir is not None}
    variables = {"openai": "TETHER_JUDGE_URL", "classifier": "TETHER_CLASSIFIER_DIR"}
    for judge in body.judge:
        if not configured.get(judge.type, True):
            raise InvalidRequest(
                f"judge: this installation has no judge of the type {judge.type!r}; choose another one, or have"
                f" the operator set {variables[judge.type]}",
                param="judge",
                code="judge_not_configured",
            )


def _find_model(session: Session, caller: Caller, body: EvaluationCreate) -> TunedModel | None:
    """Return the fine-tuned model that a request names; None where it names a base model."""
    prefixes = body.decoding.data_prefixes > 0
    if not body.model.startswith(TUNED):
        find_base_model(session, body.model)
        if prefixes:
            raise _no_prefixes(f"{body.model} is a base model, whose training data are not here")
        return None
    found = get_tuned_model(session, caller.project_id, body.model)
    if found.adapter_sha256 is None:
        raise InvalidRequest(
            f"model: the weights of {body.model!r} were not kept", param="model", code="adapter_not_kept"
        )
    if prefixes and found.job.project_id != caller.project_id:
        raise _no_prefixes(f"the training data of {body.model} belong to another project")
    if prefixes and get_file(session, caller.project_id, found.job.training_file) is None:
        raise _no_prefixes(f"the training file of {body.model} was deleted")
    return found


def _no_prefixes(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"decoding.data_prefixes: {why}; ask for 0",
        param="decoding.data_prefixes",
        code="training_data_unavailable",
    )


def _find_suite(session: Session, project_id: str, suite: str) -> File | None:
    """Return the file of prompts that a request names; None where it names a suite that comes with Tether."""
    if suite in BUILTIN_SUITES:
        return None
    file = get_file(session, project_id, suite)
    if file is None:
        raise InvalidRequest(
            f"suite: no suite and no file of this project is called {suite!r}; suites: {', '.join(BUILTIN_SUITES)}, or the"
            f" id of a file that was uploaded with the purpose {DATA!r}",
            param="suite",
            code="suite_not_found",
        )
    if file.purpose != DATA:
        raise InvalidRequest(
            f"suite: {suite} has the purpose {file.purpose!r}; expected {DATA!r}",
            param="suite",
        )
    return file


def get_evaluation(session: Session, project_id: str, evaluation_id: str) -> Evaluation:
    """Return an evaluation of the project. Raises NotFound."""
    evaluation = repository.get_evaluation(session, project_id, evaluation_id)
    if evaluation is None:
        raise NotFound(f"no evaluation has the id {evaluation_id!r} in this project", param="evaluation_id")
    return evaluation


def cancel_evaluation(session: Session, caller: Caller, evaluation_id: str) -> Evaluation:
    """Cancel at once what nobody owns; ask the owner of the rest, who obeys at its next boundary."""
    evaluation = get_evaluation(session, caller.project_id, evaluation_id)
    work = evaluation.work
    # Writing comes first, because it waits for whoever is just changing the row; only then is its state known.
    work_repository.set_desired(session, work.id, Desired.CANCEL)
    session.refresh(work)
    state = State(work.state)
    if state in TERMINAL:
        raise Conflict(
            f"the evaluation {evaluation_id} has ended as {state}; only one that has not ended can be cancelled",
            code="evaluation_ended",
        )
    if state not in OWNED:
        # Nobody owns it: take it over, so that a worker which is just claiming it is fenced.
        if not work_repository.take_over(session, work):
            raise Conflict(f"the evaluation {evaluation_id} is just starting; send the cancellation again")
        work_service.end(session, work, State.CANCELLED, None)
    session.refresh(evaluation)
    return evaluation
