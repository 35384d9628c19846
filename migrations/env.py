"""Alembic's entry: migrations run on a connection that the caller opened."""

from typing import Any, Literal

from alembic import context

from app.models.base import Base, UtcDateTime


def render_item(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """Write our own column types as the plain ones they are stored as: a migration outlives our code."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    render_item=render_item,
)
with context.begin_transaction():
    context.run_migrations()
