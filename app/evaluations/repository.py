"""Every query of evaluations, scoped by project."""

from collections.abc import Sequence

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from app.domain.job import TERMINAL, WorkKind
from app.models.evaluation import Evaluation
from app.models.work import Work
from app.pages import unknown_cursor


def get_evaluation(session: Session, project_id: str, evaluation_id: str) -> Evaluation | None:
    """Return an evaluation of the project."""
    return session.scalars(
        select(Evaluation).where(Evaluation.id == evaluation_id, Evaluation.project_id == project_id)
    ).one_or_none()


def list_evaluations(
    session: Session, project_id: str, *, model: str | None, after: str | None, limit: int
) -> Sequence[Evaluation]:
    """Return up to limit + 1 evaluations, newest first; with `model`, those of a model."""
    query = select(Evaluation).where(Evaluation.project_id == project_id)
    if model is not None:
        query = query.where(Evaluation.model == model)
    if after is not None:
        cursor = session.execute(
            select(Evaluation.created_at, Evaluation.id).where(
                Evaluation.id == after, Evaluation.project_id == project_id
            )
        ).one_or_none()
        if cursor is None:
            raise unknown_cursor(after)
        query = query.where(tuple_(Evaluation.created_at, Evaluation.id) < tuple(cursor))
    return session.scalars(
        query.order_by(Evaluation.created_at.desc(), Evaluation.id.desc()).limit(limit + 1)
    ).all()


def count_unfinished(session: Session, project_id: str) -> int:
    """Count the evaluations of the project that wait or are under way."""
    query = select(func.count()).where(
        Work.project_id == project_id, Work.kind == WorkKind.EVALUATE, Work.state.not_in(TERMINAL)
    )
    return session.scalar(query) or 0


def find_results(session: Session, project_id: str, models: Sequence[str]) -> dict[str, Evaluation]:
    """Return the newest finished evaluation of each of these models of the project, where there is one."""
    rows = session.scalars(
        select(Evaluation)
        .where(
            Evaluation.project_id == project_id, Evaluation.model.in_(models), Evaluation.result.is_not(None)
        )
        .order_by(Evaluation.created_at, Evaluation.id)
    )
    return {each.model: each for each in rows}
