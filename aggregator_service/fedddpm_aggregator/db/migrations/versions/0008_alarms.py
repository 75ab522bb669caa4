"""Runs that are held when an alarm rings; runs that exist are not.

An earlier release can use the schema: it rings no alarm, and holds no run on one.
"""

import sqlalchemy as sa
from alembic import op

revision = '0008'
down_revision = '0007'
branch_labels = None
depends_on = None
usable_from = '0007'

ON_ALARM = "tell; or hold: an alarm pauses the run"


def upgrade() -> None:
    """Bring the schema here."""
    op.add_column('runs', sa.Column('on_alarm', sa.String(length=16), server_default='tell', nullable=False, comment=ON_ALARM))


def downgrade() -> None:
    """Take the schema back."""
    op.drop_column('runs', 'on_alarm')
