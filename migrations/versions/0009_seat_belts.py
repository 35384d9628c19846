"""the anchor, refusals of the notary, what was told to the log, and what the triggers look at"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    anchors = op.create_table(
        "anchors",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("log", NUMBER, nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("failing_since_ms", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["log"], ["installation_logs.number"], name="fk_anchors_log"),
        sa.PrimaryKeyConstraint("name", name="pk_anchors"),
    )
    op.bulk_insert(anchors, [{"name": "webhook", "size": 0, "next_at_ms": 0}])
    op.create_table(
        "notary_refusals",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_notary_refusals"),
    )
    op.create_table(
        "noted_digests",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_noted_digests"),
    )
    op.create_table(
        "weight_downloads",
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("noted_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "sha256", name="pk_weight_downloads"),
    )
    op.create_table(
        "ledger_unlocks",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_ledger_unlocks"),
    )


def downgrade() -> None:
    """Undo. The triggers look at a table that goes, and so go first; `tether migrate` makes those that a revision has."""
    if op.get_bind().dialect.name == "sqlite":
        triggers = sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'tether_%'")
        for (name,) in op.get_bind().execute(triggers).all():
            op.execute(f'DROP TRIGGER "{name}"')
    else:
        for function in ("tether_refuse", "tether_refuse_unless_unlocked", "tether_keep_terminal"):
            op.execute(f"DROP FUNCTION IF EXISTS {function}() CASCADE")
    for table in ("ledger_unlocks", "weight_downloads", "noted_digests", "notary_refusals", "anchors"):
        op.drop_table(table)


NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
