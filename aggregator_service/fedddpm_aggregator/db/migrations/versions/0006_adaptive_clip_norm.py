"""Clip norms that follow the last mean; runs that exist keep theirs.

Only this release and later ones can use the schema: an earlier one would give every round of a run the same clip norm,
and attempts at one base model must agree on it, whichever replica makes them.
"""

import sqlalchemy as sa
from alembic import op

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None
usable_from = '0006'

CLIP = "adaptive: later rounds' follows the last mean; or fixed"


def upgrade() -> None:
    """Bring the schema here."""
    op.add_column('runs', sa.Column('clip', sa.String(length=16), server_default='fixed', nullable=False, comment=CLIP))


def downgrade() -> None:
    """Take the schema back."""
    op.drop_column('runs', 'clip')
