"""Verdicts with their evidence; sealed shares are under the signature of their dealer's deal and have none of their own.

A run that is under way was begun under the protocol of an earlier release, which this one does not speak: it is not
brought here. Only this release and later ones can use the schema.
"""

import sqlalchemy as sa
from alembic import op

from fedddpm_aggregator.errors import OperatorError

revision = '0009'
down_revision = '0008'
branch_labels = None
depends_on = None
usable_from = '0009'


def upgrade() -> None:
    """Bring the schema here."""
    open_runs = sa.text("SELECT name FROM runs WHERE status IN ('running', 'stalled', 'paused') ORDER BY id")
    names = [row[0] for row in op.get_bind().execute(open_runs)]
    if names:
        raise OperatorError(
            f"run {', '.join(names)} is under way under fedddpm/sa/1, which this release does not speak: finish runs "
            'before updating. Start the earlier release again and let it finish, or end it there '
            '(fedddpm-aggregator federation end-run); nothing was changed'
        )
    op.execute(sa.text('DELETE FROM shares'))
    op.drop_column('shares', 'signature')
    op.create_table(
        'verdicts',
        sa.Column('id', sa.Integer(), nullable=False),
        sa.Column('session_id', sa.Integer(), nullable=False),
        sa.Column('attempt_id', sa.Integer(), nullable=False),
        sa.Column('run_id', sa.Integer(), nullable=False),
        sa.Column('member', sa.String(length=64), nullable=False),
        sa.Column('offence', sa.String(length=32), nullable=False, comment='contradiction: it is not proven who'),
        sa.Column('words', sa.Text(), nullable=False, comment='for people'),
        sa.Column('roster_version', sa.Integer(), nullable=False, comment='a newer one ends what follows from it'),
        sa.Column('sha256', sa.String(length=64), nullable=True, comment='hex, of the evidence'),
        sa.Column('evidence', sa.Text(), nullable=True, comment='JSON: signed messages that prove it to third parties'),
        sa.Column('found_at', sa.Float(), nullable=False, comment='Unix seconds, for humans'),
        sa.ForeignKeyConstraint(['attempt_id'], ['attempts.id'], name=op.f('fk_verdicts_attempt_id')),
        sa.ForeignKeyConstraint(['run_id'], ['runs.id'], name=op.f('fk_verdicts_run_id')),
        sa.ForeignKeyConstraint(['session_id'], ['sessions.id'], name=op.f('fk_verdicts_session_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_verdicts')),
    )
    op.create_index('uq_verdicts_session', 'verdicts', ['session_id', 'member', 'offence'], unique=True)
    op.create_index(op.f('ix_verdicts_sha256'), 'verdicts', ['sha256'])


def downgrade() -> None:
    """Take the schema back."""
    op.drop_table('verdicts')
    op.execute(sa.text('DELETE FROM shares'))
    op.add_column('shares', sa.Column('signature', sa.LargeBinary(), nullable=False, server_default=''))
