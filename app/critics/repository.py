"""Every query of critics."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models.base_model import BaseModel, Critic


def get_critic(session: Session, critic_id: str) -> Critic | None:
    """Return a critic."""
    return session.get(Critic, critic_id)


def get_newest_critic(session: Session, base: BaseModel) -> Critic | None:
    """Return the newest critic that was fitted for exactly these weights."""
    return session.scalars(
        select(Critic)
        .where(Critic.base_model == base.name, Critic.base_digest == base.digest)
        .order_by(Critic.created_at.desc(), Critic.id.desc())
        .limit(1)
    ).one_or_none()


def list_critics(session: Session) -> Sequence[Critic]:
    """Return every critic, oldest first."""
    return session.scalars(select(Critic).order_by(Critic.created_at, Critic.id)).all()
