"""harm categories of critics"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    # Not in batch mode, which copies a table on SQLite and drops the old one: jobs refer to this one.
    op.add_column(
        "critics", sa.Column("category", sa.String(length=64), server_default="harm", nullable=False)
    )


def downgrade() -> None:
    """Undo."""
    op.drop_column("critics", "category")
