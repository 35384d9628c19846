"""the whole wire, tenants and limits, reports, webhooks"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    _tenants()
    _uploads()
    _permissions()
    _lineage()
    _replies()
    _curves()
    _webhooks()
    _reports()


def downgrade() -> None:
    """Undo."""
    for table in reversed(TABLES):
        op.drop_table(table)
    op.drop_index("ix_files_expires_at", "files")
    # Not in batch mode, for the reason that `_tenants` has.
    for table, columns in COLUMNS.items():
        for column in columns:
            op.drop_column(table, column)


TABLES = (
    "spans",
    "uploads",
    "upload_parts",
    "checkpoint_permissions",
    "replies",
    "curve_pieces",
    "webhook_endpoints",
    "webhook_deliveries",
    "reports",
    "risk_reads",
)
COLUMNS = {
    "projects": ("limits",),
    "work": ("not_before_ms", "priority", "turn"),
    "api_keys": ("scopes", "expires_at", "revoked_at", "last_used_at", "replaced_by"),
    "files": ("expires_at", "format", "findings", "derived_from"),
    "jobs": ("model_deleted_at", "parent_sha256", "lineage"),
    "checkpoints": ("adapter_sha256", "model_deleted_at"),
}
"""What is new, for the way back."""


def _tenants() -> None:
    # Not in batch mode, which copies a table on SQLite and drops the old one: other tables refer to these.
    op.add_column("projects", sa.Column("limits", sa.JSON(), nullable=True))
    op.add_column("work", sa.Column("not_before_ms", sa.BigInteger(), nullable=True))
    op.add_column("work", sa.Column("priority", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("work", sa.Column("turn", sa.JSON(), nullable=True))
    op.add_column("api_keys", sa.Column("scopes", sa.JSON(), nullable=True))
    for name in ("expires_at", "revoked_at", "last_used_at"):
        op.add_column("api_keys", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("replaced_by", sa.String(length=64), nullable=True))
    op.create_table(
        "spans",
        sa.Column("work_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("queue", sa.String(length=16), nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_spans_project_id"),
        sa.ForeignKeyConstraint(["work_id"], ["work.id"], name="fk_spans_work_id"),
        sa.PrimaryKeyConstraint("work_id", "epoch", name="pk_spans"),
    )
    op.create_index("ix_spans_project", "spans", ["project_id", "until_ms"])
    op.create_index("ix_spans_until", "spans", ["until_ms"])


def _uploads() -> None:
    op.add_column("files", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_files_expires_at", "files", ["expires_at"])
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("filename", sa.String(length=255), nullable=False),
        sa.Column("purpose", sa.String(length=32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("expires_after_s", sa.BigInteger(), nullable=True),
        sa.Column("received_bytes", sa.BigInteger(), nullable=False),
        sa.Column("received_parts", sa.BigInteger(), nullable=False),
        sa.Column("part_ids", sa.JSON(), nullable=True),
        sa.Column("file_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name="fk_uploads_file_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_uploads_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
    )
    op.create_index("ix_uploads_project_id", "uploads", ["project_id"])
    op.create_index("ix_uploads_status", "uploads", ["status", "expires_at"])
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("upload_id", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_upload_parts_project_id"),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"], name="fk_upload_parts_upload_id"),
        sa.PrimaryKeyConstraint("id", name="pk_upload_parts"),
        sa.UniqueConstraint("upload_id", "sha256", name="uq_upload_parts_upload_id_sha256"),
    )
    op.create_index("ix_upload_parts_sha256", "upload_parts", ["sha256"])


def _permissions() -> None:
    op.add_column("jobs", sa.Column("model_deleted_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("checkpoints", sa.Column("adapter_sha256", sa.String(length=64), nullable=True))
    op.add_column("checkpoints", sa.Column("model_deleted_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "checkpoint_permissions",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_checkpoint_permissions_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoint_permissions"),
        sa.UniqueConstraint("model", "project_id", name="uq_checkpoint_permissions_model_project_id"),
    )
    op.create_index("ix_checkpoint_permissions_project_id", "checkpoint_permissions", ["project_id"])


def _lineage() -> None:
    op.add_column("jobs", sa.Column("parent_sha256", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("lineage", sa.JSON(), nullable=True))


def _replies() -> None:
    op.create_table(
        "replies",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("api_key_id", sa.String(length=64), nullable=False),
        sa.Column("route", sa.String(length=64), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.Column("reply", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name="fk_replies_api_key_id"),
        sa.PrimaryKeyConstraint("id", name="pk_replies"),
        sa.UniqueConstraint(
            "api_key_id",
            "route",
            "idempotency_key",
            name="uq_replies_api_key_id_route_idempotency_key",
        ),
    )
    op.create_index("ix_replies_created_at", "replies", ["created_at"])


def _curves() -> None:
    op.create_table(
        "curve_pieces",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("last_step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_curve_pieces_job_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_curve_pieces_project_id"),
        sa.PrimaryKeyConstraint("job_id", "last_step", name="pk_curve_pieces"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Compressing numbers like these costs more time than it saves room.
        op.execute("ALTER TABLE curve_pieces ALTER COLUMN packed SET STORAGE EXTERNAL")


def _webhooks() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_types", sa.JSON(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("secret", sa.LargeBinary(length=32), nullable=False),
        sa.Column("former_secret", sa.LargeBinary(length=32), nullable=True),
        sa.Column("former_secret_until_ms", sa.BigInteger(), nullable=True),
        sa.Column("good_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_webhook_endpoints_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_endpoints"),
    )
    op.create_index("ix_webhook_endpoints_page", "webhook_endpoints", ["project_id", "created_at", "id"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("endpoint_id", sa.String(length=64), nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("event_type", sa.String(length=64), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("tried_since_ms", sa.BigInteger(), nullable=True),
        sa.Column("next_attempt_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("attempted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("status_code", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["webhook_endpoints.id"],
            name="fk_webhook_deliveries_endpoint_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_webhook_deliveries_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
    )
    op.create_index("ix_webhook_deliveries_page", "webhook_deliveries", ["endpoint_id", "created_at", "id"])
    op.create_index("ix_webhook_deliveries_due", "webhook_deliveries", ["state", "next_attempt_at_ms"])


def _reports() -> None:
    op.add_column("files", sa.Column("format", sa.String(length=32), nullable=True))
    for name in ("findings", "derived_from"):
        op.add_column("files", sa.Column(name, sa.JSON(), nullable=True))
    op.create_table(
        "reports",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("body", sa.JSON(), nullable=True),
        sa.Column("scores", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["work.id"], name="fk_reports_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_reports_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_reports"),
    )
    op.create_index("ix_reports_digest", "reports", ["project_id", "digest"], unique=True)
    op.create_table(
        "risk_reads",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("report_id", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("visibility", sa.String(length=16), nullable=False),
        sa.Column("use", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_risk_reads_project_id"),
        sa.ForeignKeyConstraint(["report_id"], ["reports.id"], name="fk_risk_reads_report_id"),
        sa.PrimaryKeyConstraint("number", name="pk_risk_reads"),
    )
    op.create_index("ix_risk_reads_report_id", "risk_reads", ["report_id"])
