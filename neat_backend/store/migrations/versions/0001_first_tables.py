"""The first tables. Written out, not taken from schema.py: a migration stays what it was."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _text(name: str, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=nullable)


def _int(name: str, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False)


def _seconds(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double)


def _time(name: str, nullable: bool = True) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _project_key(table: str, column: str) -> tuple[sa.PrimaryKeyConstraint, sa.ForeignKeyConstraint]:
    return (
        sa.PrimaryKeyConstraint("project", column, name=f"pk_{table}"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name=f"fk_{table}_projects"),
    )


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.BigInteger, autoincrement=False, nullable=False),
        _text("title"),
        _text("label_config"),
        _text("sampling"),
        _text("extra_params"),
        _text("label_studio_url"),
        _text("access_token"),
        _text("backend_url"),
        _text("state"),
        _text("detail"),
        _int("progress_done"),
        _int("progress_total"),
        _seconds("progress_eta_seconds"),
        _int("revision"),
        _text("model_version"),
        _int("applied_event"),
        _int("published_event"),
        _time("synced_at"),
        _text("lease_owner", nullable=True),
        _time("lease_until"),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
    )
    op.create_table(
        "inbox_heads",
        sa.Column("project", sa.BigInteger, autoincrement=False, nullable=False),
        _int("received_through"),
        sa.PrimaryKeyConstraint("project", name="pk_inbox_heads"),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=True, nullable=False),
        _int("project"),
        _text("action"),
        _text("state"),
        _time("received_at", nullable=False),
        _time("applied_at"),
        sa.Column("attempts", sa.Integer, nullable=False),
        _text("error"),
        _text("payload"),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sqlite_autoincrement=True,
    )
    for name, columns, state in (
        ("queued", ["project", "id", "received_at"], "queued"),
        ("set_aside", ["project", "id"], "set_aside"),
        ("applied", ["applied_at", "id"], "applied"),
    ):
        where = sa.text(f"state = '{state}'")
        op.create_index(f"ix_events_{name}", "events", columns, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "tasks",
        _int("project"),
        _int("id"),
        _text("state"),
        _int("seen"),
        _int("content_seen"),
        _time("updated_at"),
        _flag("has_annotations"),
        _text("image", nullable=True),
        _text("image_error"),
        *_project_key("tasks", "id"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_tasks_project_state_id", "tasks", ["project", "state", "id"])
    op.create_table(
        "annotations",
        _int("project"),
        _int("id"),
        _flag("live"),
        _int("seen"),
        _int("synced_seen"),
        _int("deleted_seen"),
        _int("content_seen"),
        _int("task", nullable=True),
        _int("annotator", nullable=True),
        _text("choices"),
        _flag("was_cancelled"),
        _flag("ground_truth"),
        _time("updated_at"),
        *_project_key("annotations", "id"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_annotations_project_task", "annotations", ["project", "task"])
    op.create_table(
        "rounds",
        _int("project"),
        _int("number"),
        _text("trigger"),
        _text("state"),
        _int("known"),
        _int("invalid"),
        _int("unlabelled"),
        _int("queried"),
        _int("queried_known"),
        _text("classes"),
        _time("started_at", nullable=False),
        _time("finished_at"),
        _seconds("seconds"),
        _int("held_out"),
        _int("held_out_correct"),
        _text("error", nullable=True),
        *_project_key("rounds", "number"),
    )
    op.create_table(
        "revisions",
        _int("project"),
        _int("number"),
        _text("version"),
        _text("state"),
        _time("begun_at", nullable=False),
        *_project_key("revisions", "number"),
    )


def downgrade() -> None:
    for table in ("revisions", "rounds", "annotations", "tasks", "events", "inbox_heads", "projects"):
        op.drop_table(table)
