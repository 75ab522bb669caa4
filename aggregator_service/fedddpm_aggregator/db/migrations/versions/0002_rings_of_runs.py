"""Rings of a run, the seed of its first model, and sums that wrapped.

Round specifications and results got more fields with this version, so an attempt that an earlier one began cannot go
on: it ends here, and its run begins the next attempt as soon as the server sweeps. Runs that exist keep 32 bits.
"""

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None

REASON = 'fedddpm-aggregator was updated: attempts of the earlier version cannot go on'


def upgrade() -> None:
    """Bring the schema here."""
    op.add_column('runs', sa.Column('bits', sa.Integer(), server_default='32', nullable=False, comment='ring of the values'))
    op.add_column('runs', sa.Column('first_bits', sa.Integer(), server_default='32', nullable=False, comment='ring where nothing is known of their size'))
    op.add_column('runs', sa.Column('initial_seed', sa.String(length=64), server_default='', nullable=False, comment='hex; theta_0 follows from it; empty: it does not'))
    op.add_column('sessions', sa.Column('wrapped', sa.Boolean(), server_default=sa.false(), nullable=False, comment='the opened sum left its ring'))

    runs = sa.table('runs', sa.column('status'), sa.column('reason'), sa.column('stalled_roster'))
    attempts = sa.table('attempts', sa.column('id'), sa.column('status'))
    sessions = sa.table('sessions', sa.column('attempt_id'), sa.column('phase'), sa.column('reason'))
    active = sa.select(attempts.c.id).where(attempts.c.status == 'active')
    over = sa.and_(sessions.c.attempt_id.in_(active), sessions.c.phase.not_in(('done', 'failed')))
    op.execute(sessions.update().where(over).values(phase='failed', reason=REASON))
    op.execute(attempts.update().where(attempts.c.status == 'active').values(status='failed'))
    running = runs.c.status == 'running'
    op.execute(runs.update().where(running).values(status='stalled', reason=REASON, stalled_roster=0))


def downgrade() -> None:
    """Take the schema back."""
    # Not in batches: SQLite would copy the tables, and other tables refer to runs.
    op.drop_column('sessions', 'wrapped')
    op.drop_column('runs', 'initial_seed')
    op.drop_column('runs', 'first_bits')
    op.drop_column('runs', 'bits')
