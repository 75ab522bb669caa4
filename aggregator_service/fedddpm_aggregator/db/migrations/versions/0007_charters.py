"""Runs that the root has signed. Runs that exist have no charter: no attempt at their rounds begins any more.

Only this release and later ones can use the schema: an earlier one would begin rounds that no charter asks for.
"""

import sqlalchemy as sa
from alembic import op

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None
usable_from = '0007'

BEFORE = 'of runs from before charters: none'


def upgrade() -> None:
    """Bring the schema here."""
    op.add_column('runs', sa.Column('charter_number', sa.Integer(), nullable=True, comment='grows; ' + BEFORE))
    op.add_column('runs', sa.Column('charter', sa.LargeBinary(), nullable=True, comment='canonical charter; ' + BEFORE))
    op.add_column(
        'runs',
        sa.Column('charter_signature', sa.LargeBinary(), nullable=True, comment="of the federation's root key"),
    )
    op.add_column(
        'runs', sa.Column('lineage', sa.LargeBinary(), nullable=True, comment='canonical lineage; none before a result')
    )
    op.create_index(op.f('ix_runs_charter_number'), 'runs', ['charter_number'], unique=True)
    op.drop_column('runs', 'request')


def downgrade() -> None:
    """Take the schema back."""
    op.add_column(
        'runs',
        sa.Column('request', sa.String(length=64), nullable=True, comment="hex; digest of the operator's request for it"),
    )
    op.drop_index(op.f('ix_runs_charter_number'), table_name='runs')
    for name in ('lineage', 'charter_signature', 'charter', 'charter_number'):
        op.drop_column('runs', name)
