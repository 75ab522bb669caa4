"""The schema of a database: how it comes up to date, and which releases can work on it.

A release knows its own migrations. On a schema that a newer one made it works if that one wrote down that it may: the
floor is the oldest revision whose release can use the schema (docs/adr/0014-schemas-that-an-older-release-can-use.md).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, insert, inspect, select

from fedddpm_aggregator.db.tables import Base, SchemaFloorRow
from fedddpm_aggregator.errors import OperatorError

log = logging.getLogger(__name__)
MIGRATIONS = Path(__file__).parent / "migrations"
_FLOOR = Base.metadata.tables[SchemaFloorRow.__tablename__]


@dataclass(frozen=True)
class SchemaRelease:
    """The migrations of a release."""

    known: tuple[str, ...]  # revisions, the oldest first; the last one is its schema
    floor: str  # oldest revision whose release can use its schema

    @property
    def head(self) -> str:
        """The revision that its code is written for."""
        return self.known[-1]

    def can_use(self, connection: Connection) -> bool:
        """Whether its code works on the schema of a database; False for an older one that is not up to date yet."""
        revision = revision_of(connection)
        if revision is None or revision in self.known:
            return revision == self.head
        return floor_of(connection, revision) in self.known


def this_release() -> SchemaRelease:
    """The packaged migrations. One that names no ``usable_from`` can be used by its own release and later ones."""
    scripts = list(ScriptDirectory.from_config(_config()).walk_revisions("base", "heads"))[::-1]
    known = tuple(script.revision for script in scripts)
    floors = [known.index(getattr(script.module, "usable_from", script.revision)) for script in scripts]
    return SchemaRelease(known, known[max(floors)])


def revision_of(connection: Connection) -> str | None:
    """The revision of a database; None for an empty one."""
    heads = MigrationContext.configure(connection).get_current_heads()
    return ", ".join(heads) or None


def floor_of(connection: Connection, revision: str) -> str | None:
    """The floor that was written with a revision; None if none was."""
    if not inspect(connection).has_table(_FLOOR.name):
        return None
    return connection.scalar(select(_FLOOR.c.usable_from).where(_FLOOR.c.revision == revision))


def bring_up_to_date(connection: Connection) -> None:
    """Make this release's schema of an older one, in the caller's transaction; leave a newer one as it is.

    OperatorError for a newer one that this release cannot use.
    """
    release, revision = this_release(), revision_of(connection)
    if revision == release.head:
        return
    if revision is None or revision in release.known:
        command.upgrade(alembic_config(connection), "head")
        connection.execute(delete(_FLOOR))
        connection.execute(insert(_FLOOR).values(revision=release.head, usable_from=release.floor))
        return
    if not release.can_use(connection):
        raise OperatorError(
            f"the database was brought to schema {revision} by a newer release of fedddpm-aggregator, and this one "
            f"(schema {release.head}) is too old to use it. Start the newer release again, or restore the backup from "
            "before the upgrade"
        )
    log.warning("a newer release made this schema; it can be used", extra={"fields": {"revision": revision}})


def alembic_config(connection: Connection) -> Config:
    """Alembic's settings for the packaged migrations over an open connection."""
    config = _config()
    config.attributes["connection"] = connection
    return config


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config
