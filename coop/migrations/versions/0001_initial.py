"""Every table of the first release."""

from alembic import op

import coop.tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    coop.tables.create(op.get_bind())


def downgrade() -> None:
    op.get_bind()  # nothing older to go back to
