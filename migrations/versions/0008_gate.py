"""stored policies, what the gate found, and what people decided about held jobs"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "policies",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("written_in", sa.String(8), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_policies"),
        sa.UniqueConstraint("name", "version", name="uq_policies_name_version"),
    )
    op.create_table(
        "job_decisions",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("decision", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_job_decisions_project_id"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_decisions_job_id"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_job_decisions_key_id"),
        sa.PrimaryKeyConstraint("number", name="pk_job_decisions"),
        sa.UniqueConstraint("job_id", "key_id", "decision", name="uq_job_decisions_job_id_key_id_decision"),
    )
    # Not in batch mode, which copies a table on SQLite and drops the old one: other tables refer to these.
    op.add_column("projects", sa.Column("policy_id", sa.String(64), nullable=True))
    op.add_column("jobs", sa.Column("gate", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("gate_result", sa.JSON(), nullable=True))
    op.add_column("files", sa.Column("job_id", sa.String(64), nullable=True))
    _name_jobs_of_results()


def downgrade() -> None:
    """Undo."""
    op.drop_column("files", "job_id")
    op.drop_column("jobs", "gate_result")
    op.drop_column("jobs", "gate")
    op.drop_column("projects", "policy_id")
    op.drop_table("job_decisions")
    op.drop_table("policies")


def _name_jobs_of_results() -> None:
    """Say of the result files that are there already whose they are, so that nobody sees those of a job not yet released."""
    connection = op.get_bind()
    for job_id, stored in connection.execute(sa.text("SELECT id, result_files FROM jobs")).all():
        for file_id in json.loads(stored) if isinstance(stored, str) else stored:
            connection.execute(
                sa.text("UPDATE files SET job_id = :job WHERE id = :file"), {"job": job_id, "file": file_id}
            )


NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""As in the models: SQLite counts up only its own integers."""
