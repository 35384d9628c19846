"""pruned jobs, legal holds, and files whose keys were erased"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "pruned_jobs",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(16), nullable=False),
        sa.Column("pruning", sa.LargeBinary(), nullable=False),
        sa.Column("event", NUMBER, nullable=False),
        sa.Column("announced_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_pruned_jobs_job_id"),
        sa.ForeignKeyConstraint(["event"], ["log_events.number"], name="fk_pruned_jobs_event"),
        sa.PrimaryKeyConstraint("number", name="pk_pruned_jobs"),
    )
    op.create_index("ix_pruned_jobs_job_id", "pruned_jobs", ["job_id"])
    op.create_table(
        "legal_holds",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_legal_holds_project_id"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_legal_holds_job_id"),
        sa.PrimaryKeyConstraint("id", name="pk_legal_holds"),
    )
    op.create_index("ix_legal_holds_project_id", "legal_holds", ["project_id"])
    op.add_column("jobs", sa.Column("pruned_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("files", sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Undo."""
    op.drop_column("files", "erased_at")
    op.drop_column("jobs", "pruned_at")
    for table in ("legal_holds", "pruned_jobs"):
        op.drop_table(table)


NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
