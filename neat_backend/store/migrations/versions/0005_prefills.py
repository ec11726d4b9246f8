"""What annotators found filled in, and whether they kept it. Of earlier answers nobody knows."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "prefills",
        sa.Column("project", sa.BigInteger, nullable=False),
        sa.Column("task", sa.BigInteger, nullable=False),
        sa.Column("choice", sa.Text(), nullable=False),
        sa.Column("kept", sa.Boolean, nullable=True),
        sa.PrimaryKeyConstraint("project", "task", name="pk_prefills"),
        sa.ForeignKeyConstraint(["project"], ["projects.id"], name="fk_prefills_projects"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("prefills")
