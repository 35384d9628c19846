"""signed statements about adapters; revision and original training compute of base models"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "attestations",
        sa.Column("work_id", sa.String(64), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["work_id"], ["work.id"], name="fk_attestations_work_id"),
        sa.PrimaryKeyConstraint("work_id", name="pk_attestations"),
    )
    op.add_column("base_models", sa.Column("revision", sa.String(255), nullable=True))
    op.add_column("base_models", sa.Column("training_flops", sa.Double(), nullable=True))


def downgrade() -> None:
    """Undo."""
    op.drop_column("base_models", "training_flops")
    op.drop_column("base_models", "revision")
    op.drop_table("attestations")
