"""/v1/evaluations"""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.dependencies import CallerDep, DatabaseDep, ReadSessionDep, SessionDep, SettingsDep, needs
from app.domain.scopes import Scope
from app.evaluations import repository, service
from app.evaluations.schemas import EvaluationCreate, evaluation_to_wire
from app.idempotency import AttemptDep
from app.pages import build_page

router = APIRouter(prefix="/v1/evaluations", tags=["evaluations"])


@router.post("", status_code=202, dependencies=[needs(Scope.EVALUATIONS_WRITE)])
def create_evaluation(
    caller: CallerDep,
    database: DatabaseDep,
    settings: SettingsDep,
    attempt: AttemptDep,
    body: EvaluationCreate,
) -> dict[str, Any]:
    """Have a model evaluated before and after its training; poll it until its status is succeeded or failed."""
    return service.create_evaluation(database, settings, caller, attempt, body)


@router.get("", dependencies=[needs(Scope.EVALUATIONS_READ)])
def list_evaluations(
    caller: CallerDep,
    session: ReadSessionDep,
    model: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """List evaluations without their results, newest first; with `model`, those of a model."""
    found = repository.list_evaluations(session, caller.project_id, model=model, after=after, limit=limit)
    return build_page([evaluation_to_wire(each, whole=False) for each in found], limit)


@router.get("/{evaluation_id}", dependencies=[needs(Scope.EVALUATIONS_READ)])
def retrieve_evaluation(caller: CallerDep, session: ReadSessionDep, evaluation_id: str) -> dict[str, Any]:
    """Return an evaluation with its result, or how far it is, or why it failed."""
    return evaluation_to_wire(service.get_evaluation(session, caller.project_id, evaluation_id), whole=True)


@router.post("/{evaluation_id}/cancel", dependencies=[needs(Scope.EVALUATIONS_WRITE)])
def cancel_evaluation(caller: CallerDep, session: SessionDep, evaluation_id: str) -> dict[str, Any]:
    """Cancel an evaluation that has not ended."""
    return evaluation_to_wire(service.cancel_evaluation(session, caller, evaluation_id), whole=True)
