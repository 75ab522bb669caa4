"""The packaged migrations give the schema that the code uses, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from benchmarks.load.postgresql import PostgreSQL
from sqlalchemy import inspect, text
from tests.aggregator.support.sites import NewFederation

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.engine import Database
from fedddpm_aggregator.db.schema import alembic_config, revision_of
from fedddpm_aggregator.db.tables import Base
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.service.history.session_lines import overview
from fedddpm_aggregator.service.rounds.attempts import start_attempt
from fedddpm_aggregator.service.verification.verify_history import verify_history
from fedddpm_aggregator.settings import Settings
from fedddpm_protocol.primitives import canonical


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


def test_a_run_of_an_earlier_version_is_finished_before_the_update(new_federation: NewFederation) -> None:
    """It cannot go on under this one, so nothing is changed as long as it is under way."""
    federation = new_federation()
    federation.start_run(bits=8, chunk_coordinates=64)
    with federation.context() as ctx:
        with ctx.transaction() as db:
            start_attempt(ctx, db, queries.open_runs(db)[0])
        take_back(ctx.database)
        with pytest.raises(OperatorError, match=r"run-1 is under way under fedddpm/sa/1.* finish runs before updating"):
            ctx.database.migrate()
        with ctx.database.engine.connect() as connection:
            assert revision_of(connection) == "0001"
            connection.execution_options(fedddpm_write=True)
            connection.execute(text("UPDATE runs SET status = 'ended'"))
            connection.commit()
        ctx.database.migrate()
        with ctx.database.read() as db:
            run = queries.current_run(db)
        assert run is not None
        assert (run.bits, run.first_bits, run.initial_seed, run.status) == (32, 32, "", "ended")
        assert overview(ctx) == []
        assert verify_history(ctx)["runs under fedddpm/sa/1, not followed by this release"] == 1


def take_back(database: Database) -> None:
    """The database as the first version left it, with a specification of that time."""
    with database.engine.connect() as connection:
        connection.execution_options(fedddpm_write=True)
        with connection.begin():
            command.downgrade(alembic_config(connection), "0001")
            connection.execute(text("UPDATE attempts SET spec = :old"), {"old": canonical.lp(b"fedddpm/sa/1", b"")})


def test_a_postgresql_without_an_encoding_is_as_good(own_postgresql: PostgreSQL) -> None:
    url = own_postgresql.new_database("SQL_ASCII")  # what initdb makes in the C locale
    database = Database(Settings(data=Path(), database_url=url).resolved_database_url)
    try:
        database.migrate()
        with database.read() as db:
            assert db.scalar(text("SHOW server_encoding")) == "SQL_ASCII"
            assert db.scalar(text("SELECT 'Universität'")) == "Universität"
    finally:
        database.close()


def test_sqlite_is_durable(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.sqlite")
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    database.close()
