"""Every query of critics, the fitted ones and those under way."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import exists, or_, select, tuple_, union_all
from sqlalchemy.orm import Session

from app.domain.job import TERMINAL, State, WorkKind
from app.domain.safety_spec import DEFAULT_CATEGORY
from app.models.base_model import BaseModel, Critic
from app.models.work import Work
from app.pages import unknown_cursor


class Entry(NamedTuple):
    """A critic as clients see it: it has an id from the moment it is asked for.

    The work that fits it and the fitted critic share the id; critics of earlier versions have one of their own.
    """

    work: Work | None
    critic: Critic | None


def get_critic(session: Session, critic_id: str) -> Critic | None:
    """Return a fitted critic."""
    return session.get(Critic, critic_id)


def get_newest_critic(session: Session, base: BaseModel, category: str = DEFAULT_CATEGORY) -> Critic | None:
    """Return the newest critic of a harm category that was fitted for exactly these weights."""
    return session.scalars(
        select(Critic)
        .where(
            Critic.base_model == base.name,
            Critic.base_digest == base.digest,
            Critic.category == category,
        )
        .order_by(Critic.created_at.desc(), Critic.id.desc())
        .limit(1)
    ).one_or_none()


def list_critics(session: Session) -> Sequence[Critic]:
    """Return every fitted critic, oldest first."""
    return session.scalars(select(Critic).order_by(Critic.created_at, Critic.id)).all()


def get_entry(session: Session, critic_id: str) -> Entry | None:
    """Return a critic that is fitted, under way, or failed."""
    work = session.get(Work, critic_id)
    if work is not None and work.kind != WorkKind.FIT_CRITIC:
        work = None
    entry = Entry(work, get_critic(session, critic_id))
    return None if entry == (None, None) else entry


def list_entries(session: Session, *, after: str | None, limit: int) -> list[Entry]:
    """Return up to limit + 1 critics that are fitted, under way, or failed; the last asked for come first."""
    found = exists().where(Critic.id == Work.id)
    asked = (
        select(Work.id, Work.created_at)
        .where(Work.kind == WorkKind.FIT_CRITIC)
        # What an earlier version fitted is listed under the critic's own id.
        .where(or_(Work.state != State.SUCCEEDED, found))
    )
    others = select(Critic.id, Critic.created_at).where(~found.correlate(Critic))
    entries = union_all(asked, others).subquery()
    key = tuple_(entries.c.created_at, entries.c.id)
    query = select(entries.c.id).order_by(entries.c.created_at.desc(), entries.c.id.desc()).limit(limit + 1)
    if after is not None:
        cursor = session.execute(
            select(entries.c.created_at, entries.c.id).where(entries.c.id == after)
        ).one_or_none()
        if cursor is None:
            raise unknown_cursor(after)
        query = query.where(key < tuple(cursor))
    return [Entry(session.get(Work, each), get_critic(session, each)) for each in session.scalars(query)]


def has_fit_under_way(session: Session, base: BaseModel) -> bool:
    """Say whether a critic of this base model is being fitted or waits for it."""
    query = select(Work.id).where(
        Work.kind == WorkKind.FIT_CRITIC,
        Work.state.not_in(TERMINAL),
        Work.args["base_model"].as_string() == base.name,
    )
    return session.scalars(query.limit(1)).one_or_none() is not None
