"""the installation's log and the notary's signatures"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "installation_logs",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("origin", sa.String(255), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_installation_logs"),
        sa.UniqueConstraint("origin", name="uq_installation_logs_origin"),
    )
    op.create_table(
        "log_leaves",
        sa.Column("log", NUMBER, nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["log"], ["installation_logs.number"], name="fk_log_leaves_log"),
        sa.PrimaryKeyConstraint("log", "index", name="pk_log_leaves"),
    )
    op.create_table(
        "log_heads",
        sa.Column("log", NUMBER, nullable=False),
        sa.Column("work_id", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("index", sa.BigInteger(), nullable=False),
        sa.Column("made_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["log"], ["installation_logs.number"], name="fk_log_heads_log"),
        sa.ForeignKeyConstraint(["work_id"], ["work.id"], name="fk_log_heads_work_id"),
        sa.PrimaryKeyConstraint("log", "work_id", "size", name="pk_log_heads"),
    )
    op.create_table(
        "log_events",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.Column("log", NUMBER, nullable=True),
        sa.ForeignKeyConstraint(["log"], ["installation_logs.number"], name="fk_log_events_log"),
        sa.PrimaryKeyConstraint("number", name="pk_log_events"),
    )
    op.create_index("ix_log_events_pending", "log_events", ["log"])
    op.create_table(
        "log_checkpoints",
        sa.Column("log", NUMBER, nullable=False),
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("root", sa.String(64), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("signed_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["log"], ["installation_logs.number"], name="fk_log_checkpoints_log"),
        sa.PrimaryKeyConstraint("log", "size", name="pk_log_checkpoints"),
    )


def downgrade() -> None:
    """Undo."""
    for table in ("log_checkpoints", "log_events", "log_heads", "log_leaves", "installation_logs"):
        op.drop_table(table)


NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
