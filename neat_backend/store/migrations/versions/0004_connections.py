"""Which project and which connection of Label Studio's a row is about, and when the two were last equal."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

TIME = sa.DateTime(timezone=True)
COLUMNS = (("compared_at", TIME), ("created_at", TIME), ("connection", sa.Text()))


def upgrade() -> None:
    for name, kind in COLUMNS:
        op.add_column("projects", sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    for name, _ in COLUMNS:
        op.drop_column("projects", name)
