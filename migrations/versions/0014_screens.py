"""screens: the messages of a job are found without reading its metrics"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    messages = sa.text("type = 'message'")
    op.create_index(
        "ix_events_messages", "events", ["job_id", "number"], sqlite_where=messages, postgresql_where=messages
    )


def downgrade() -> None:
    """Undo."""
    op.drop_index("ix_events_messages", "events")
