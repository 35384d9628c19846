"""safety sets, thresholds of critics, roles of keys"""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "safety_sets",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("base_model", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("commitment_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["base_model"], ["base_models.name"], name="fk_safety_sets_base_model"),
        sa.PrimaryKeyConstraint("id", name="pk_safety_sets"),
    )
    with op.batch_alter_table("safety_sets") as batch_op:
        batch_op.create_index("ix_safety_sets_base_model", ["base_model"], unique=False)

    with op.batch_alter_table("critics") as batch_op:
        batch_op.add_column(sa.Column("threshold", sa.Double(), nullable=True))

    # Every key that exists was made by the operator; a key that comes later says its role.
    with op.batch_alter_table("api_keys") as batch_op:
        batch_op.add_column(sa.Column("role", sa.String(length=16), nullable=True))
    op.execute("UPDATE api_keys SET role = 'operator'")
    with op.batch_alter_table("api_keys") as batch_op:
        batch_op.alter_column("role", existing_type=sa.String(length=16), nullable=False)

    _rewrite_jobs(_keep_its_meaning)


def downgrade() -> None:
    """Undo."""
    _rewrite_jobs(_forget_what_was_added)

    with op.batch_alter_table("api_keys") as batch_op:
        batch_op.drop_column("role")

    # Not in batch mode, which copies a table on SQLite and drops the old one: jobs refer to it.
    op.drop_column("critics", "threshold")

    with op.batch_alter_table("safety_sets") as batch_op:
        batch_op.drop_index("ix_safety_sets_base_model")

    op.drop_table("safety_sets")


ADDED: dict[str, Any] = {"replay": False, "anchors": None, "monitor": None}
"""Fields of `adaptive_kl` whose defaults are not what a job did before they existed."""


def _keep_its_meaning(safety: dict[str, Any]) -> dict[str, Any]:
    # Back then an open threshold was 0.5; today it is the critic's own.
    return {"threshold": 0.5, **ADDED, **safety}


def _forget_what_was_added(safety: dict[str, Any]) -> dict[str, Any]:
    # A job that uses what is new keeps it: the older version must refuse it and not train it otherwise.
    return {name: value for name, value in safety.items() if name not in ADDED or value != ADDED[name]}


def _rewrite_jobs(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the `safety` of every job with the method adaptive_kl, as it was asked for and as it was resolved."""
    jobs = sa.table(
        "jobs", sa.column("id", sa.String()), sa.column("request", sa.JSON()), sa.column("spec", sa.JSON())
    )
    connection = op.get_bind()
    for job_id, *stored in connection.execute(sa.select(jobs.c.id, jobs.c.request, jobs.c.spec)).all():
        changed = {
            name: {**each, "safety": change(each["safety"])}
            for name, each in zip(("request", "spec"), stored, strict=True)
            if each and each.get("safety", {}).get("method") == "adaptive_kl"
        }
        if changed:
            connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(**changed))
