"""A release of the future: this package, copied, with more migrations."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fedddpm_aggregator
from fedddpm_aggregator.db.schema import this_release

MIGRATION = '''"""{title}"""

import sqlalchemy as sa
from alembic import op

revision = {revision!r}
down_revision = {before!r}
branch_labels = None
depends_on = None
{floor}

def upgrade() -> None:
{body}
'''
ADDS = """
    op.create_table('shiny', sa.Column('name', sa.String(length=64), primary_key=True))
    op.add_column('runs', sa.Column('shininess', sa.Integer(), nullable=True))
    op.add_column('sessions', sa.Column('sparkles', sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index('ix_runs_shininess', 'runs', ['shininess'])
"""
RENAMES = """
    op.alter_column('sessions', 'reason', new_column_name='explanation')
"""


class FutureRelease:
    """Runs its own ``fedddpm-aggregator`` as a process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        package = Path(fedddpm_aggregator.__file__).parent
        self._versions = shutil.copytree(package, folder / "fedddpm_aggregator") / "db" / "migrations" / "versions"
        self.head = this_release().head

    def migration(self, body: str, usable_from: str | None) -> str:
        """Add a migration; its revision."""
        revision = f"{int(self.head) + 1:04}"
        floor = f"usable_from = {usable_from!r}" if usable_from is not None else ""
        fields = {"title": body.strip().splitlines()[0], "revision": revision, "before": self.head, "floor": floor}
        (self._versions / f"{revision}_future.py").write_text(MIGRATION.format(**fields, body=body))
        self.head = revision
        return revision

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One command of the future, to its end."""
        path = os.pathsep.join([str(self._folder), *(os.environ.get("PYTHONPATH", "").split(os.pathsep))])
        command = [sys.executable, "-m", "fedddpm_aggregator", *arguments]
        env = os.environ | {"PYTHONPATH": path}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
