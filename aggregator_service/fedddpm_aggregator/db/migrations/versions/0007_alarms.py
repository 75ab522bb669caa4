"""Runs that are held when an alarm rings; runs that exist are not.

An earlier release can use the schema: it rings no alarm, and holds no run on one.
"""

import sqlalchemy as sa
from alembic import op

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None
usable_from = '0006'

HOLD = "an alarm pauses the run until it is resumed"


def upgrade() -> None:
    """Bring the schema here."""
    op.add_column('runs', sa.Column('hold_on_alarm', sa.Boolean(), server_default=sa.false(), nullable=False, comment=HOLD))


def downgrade() -> None:
    """Take the schema back."""
    op.drop_column('runs', 'hold_on_alarm')
