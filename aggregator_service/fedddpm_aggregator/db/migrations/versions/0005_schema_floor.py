"""Which releases can use the schema."""

import sqlalchemy as sa
from alembic import op

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None
usable_from = '0005'  # releases before look for no floor


def upgrade() -> None:
    """Bring the schema here."""
    op.create_table(
        'schema_floor',
        sa.Column('revision', sa.String(length=32), nullable=False, comment='of the schema'),
        sa.Column('usable_from', sa.String(length=32), nullable=False, comment='oldest revision whose release can use the schema'),
        sa.PrimaryKeyConstraint('revision', name=op.f('pk_schema_floor')),
    )


def downgrade() -> None:
    """Take the schema back."""
    op.drop_table('schema_floor')
