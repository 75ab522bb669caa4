"""The audit log, and runs that are paused or started from afar."""

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None

STATUSES = 'running, stalled, paused, finished or ended'


def upgrade() -> None:
    """Bring the schema here."""
    op.create_table(
        'audit',
        sa.Column('seq', sa.BigInteger(), autoincrement=False, nullable=False, comment='from 1, without gaps'),
        sa.Column('at', sa.Float(), nullable=False, comment='Unix seconds'),
        sa.Column('actor', sa.String(length=80), nullable=False, comment='operator:NAME, local or server'),
        sa.Column('action', sa.String(length=64), nullable=False),
        sa.Column('details', sa.Text(), nullable=False, comment='JSON object with sorted keys'),
        sa.Column('previous', sa.LargeBinary(), nullable=False, comment='hash of the entry before; empty for the first'),
        sa.Column('hash', sa.LargeBinary(), nullable=False, comment='over all columns before'),
        sa.Column('signature', sa.LargeBinary(), nullable=False, comment='of the aggregator over the hash'),
        sa.PrimaryKeyConstraint('seq', name=op.f('pk_audit')),
    )
    op.create_index(op.f('ix_audit_actor'), 'audit', ['actor'], unique=False)
    op.create_table(
        'incoming',
        sa.Column('sha256', sa.String(length=64), nullable=False, comment='hex, of the whole file'),
        sa.Column('index', sa.Integer(), autoincrement=False, nullable=False),
        sa.Column('size', sa.Integer(), nullable=False, comment='bytes; 0 until they are durable'),
        sa.Column('operator', sa.String(length=64), nullable=False),
        sa.Column('received_at', sa.Float(), nullable=False, comment='Unix seconds'),
        sa.PrimaryKeyConstraint('sha256', 'index', name=op.f('pk_incoming')),
    )
    op.add_column('runs', sa.Column('request', sa.String(length=64), nullable=True, comment="hex; digest of the operator's request for it"))
    _comment_status(STATUSES)


def downgrade() -> None:
    """Take the schema back; a paused run goes on."""
    runs = sa.table('runs', sa.column('status'))
    op.execute(runs.update().where(runs.c.status == 'paused').values(status='running'))
    _comment_status('running, stalled, finished or ended')
    op.drop_column('runs', 'request')
    op.drop_table('incoming')
    op.drop_index(op.f('ix_audit_actor'), table_name='audit')
    op.drop_table('audit')


def _comment_status(comment: str) -> None:
    if op.get_bind().dialect.name == 'postgresql':  # SQLite has no comments
        op.alter_column('runs', 'status', comment=comment, existing_type=sa.String(length=16), existing_nullable=False)
