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
    with op.batch_alter_table('runs', schema=None) as batch_op:
        batch_op.add_column(sa.Column('bits', sa.Integer(), server_default='32', nullable=False, comment='ring of the values'))
        batch_op.add_column(sa.Column('first_bits', sa.Integer(), server_default='32', nullable=False, comment='ring where nothing is known of their size'))
        batch_op.add_column(sa.Column('initial_seed', sa.String(length=64), server_default='', nullable=False, comment='hex; theta_0 follows from it; empty: it does not'))

    with op.batch_alter_table('sessions', schema=None) as batch_op:
        batch_op.add_column(sa.Column('wrapped', sa.Boolean(), server_default=sa.false(), nullable=False, comment='the opened sum left its ring'))

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
    with op.batch_alter_table('sessions', schema=None) as batch_op:
        batch_op.drop_column('wrapped')

    with op.batch_alter_table('runs', schema=None) as batch_op:
        batch_op.drop_column('initial_seed')
        batch_op.drop_column('first_bits')
        batch_op.drop_column('bits')
