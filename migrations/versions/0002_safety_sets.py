"""safety sets, thresholds of critics, roles of keys"""

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


def downgrade() -> None:
    """Undo."""
    with op.batch_alter_table("api_keys") as batch_op:
        batch_op.drop_column("role")

    # Not in batch mode, which copies a table on SQLite and drops the old one: jobs refer to it.
    op.drop_column("critics", "threshold")

    with op.batch_alter_table("safety_sets") as batch_op:
        batch_op.drop_index("ix_safety_sets_base_model")

    op.drop_table("safety_sets")
