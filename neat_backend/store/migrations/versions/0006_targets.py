"""Which share of the known images a project's lead wants found; null = the default."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("projects", sa.Column("target", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("projects", "target")
