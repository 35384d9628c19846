"""checkpoints: what of them is in the bucket, who wrote them, how large they are"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("checkpoints", sa.Column("stored", sa.JSON(), nullable=True))
    op.add_column("checkpoints", sa.Column("host", sa.String(255), nullable=True))
    op.add_column("checkpoints", sa.Column("size_bytes", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Undo."""
    for column in ("size_bytes", "host", "stored"):
        op.drop_column("checkpoints", column)
