"""The packaged migrations give the schema that the code uses, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from tests.aggregator.sites import NewFederation

from fedddpm_aggregator.database import Database
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.tables import Base


def test_migrations_and_tables_agree(new_federation: NewFederation) -> None:
    with new_federation().context() as ctx, ctx.database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_migrating_twice_changes_nothing(new_federation: NewFederation) -> None:
    federation = new_federation()
    database = Database(federation.settings.resolved_database_url)
    database.migrate()
    database.migrate()
    names = set(inspect(database.engine).get_table_names())
    database.close()
    assert names == set(Base.metadata.tables) | {"alembic_version"}


def test_a_database_of_a_newer_version_is_told(new_federation: NewFederation) -> None:
    with new_federation().context() as ctx:
        with ctx.database.write() as db:
            db.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(OperatorError, match="does not belong to this version"):
            ctx.database.migrate()


def test_sqlite_is_durable(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.sqlite")
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    database.close()
