"""What people ask the worker through the web."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "requests",
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("answer", sa.LargeBinary, nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("project", "kind", "name", name="pk_requests"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_requests_projects"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("requests")
