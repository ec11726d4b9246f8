"""Arrays on an object store: what a project's files are; and the key of the webhooks' secrets for several hosts."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "array_lists",
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("project", name="pk_array_lists"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_array_lists_projects"),
    )
    op.create_table(
        "array_files",
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("object", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("project", "name", name="pk_array_files"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_array_files_projects"),
    )
    op.create_table(
        "webhook_keys",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_keys"),
    )


def downgrade() -> None:
    for name in ("webhook_keys", "array_files", "array_lists"):
        op.drop_table(name)
