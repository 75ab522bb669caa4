"""What retention removed, and blobs that are still to be deleted."""

import sqlalchemy as sa
from alembic import op

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None

REMOVED = 'Unix seconds; its vectors are kept no longer'


def upgrade() -> None:
    """Bring the schema here."""
    op.add_column('models', sa.Column('removed_at', sa.Float(), nullable=True, comment=REMOVED))
    op.add_column('results', sa.Column('removed_at', sa.Float(), nullable=True, comment=REMOVED))
    op.create_table(
        'removals',
        sa.Column('name', sa.String(length=250), nullable=False, comment='of a blob, or of a folder of blobs'),
        sa.PrimaryKeyConstraint('name', name=op.f('pk_removals')),
    )


def downgrade() -> None:
    """Take the schema back; what was removed stays away."""
    op.drop_table('removals')
    op.drop_column('results', 'removed_at')
    op.drop_column('models', 'removed_at')
