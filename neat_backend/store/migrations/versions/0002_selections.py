"""Where a task stood in the order when it was answered. Of what was labelled before, nobody knows."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "selections",
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("task", sa.BigInteger, nullable=False),
        sa.Column("rank", sa.BigInteger, nullable=False),
        sa.Column("inconsistency", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("project", "task", name="pk_selections"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_selections_projects"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("selections")
