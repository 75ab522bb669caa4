"""Where a selftest works and what it removes: its own schema and folder, those of killed ones, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from tests.aggregator.selftest.selftests import fails, passes, schemas, variables
from tests.aggregator.support.poolers import dropping_options
from tests.support.postgresql import NewDatabase

from fedddpm_aggregator.blobs.store_choice import open_blobs
from fedddpm_aggregator.errors import SelftestError
from fedddpm_aggregator.selftest import leftovers, scratch_schema
from fedddpm_aggregator.selftest.leftovers import PREFIX
from fedddpm_aggregator.selftest.running import run_selftest
from fedddpm_aggregator.selftest.steps import Steps
from fedddpm_aggregator.settings import Settings

__all__ = ["variables"]


def leave_behind(url: str, name: str, owner: str | None = None) -> None:
    """What a killed selftest leaves in the database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE SCHEMA "{name}"'.encode())
        connection.execute(f'CREATE TABLE "{name}".things (id integer)'.encode())
        if owner is not None:
            connection.execute(f"CREATE ROLE {owner}".encode())
            connection.execute(f'ALTER SCHEMA "{name}" OWNER TO {owner}'.encode())


def test_only_exact_names_are_removed(
    new_postgresql_database: NewDatabase, variables: dict[str, str], tmp_path: Path
) -> None:
    url, blobs = new_postgresql_database(), tmp_path / "blobs"
    mine = "fedddpm_selftest_" + "0f" * 8
    others = ["fedddpm_selftest_mine", mine + "0", mine[:-1], mine.upper().replace("FEDDDPM_SELFTEST", PREFIX[:-1])]
    others.append('fedddpm_selftest_"x CASCADE; DROP SCHEMA public; --'.replace('"', '""'))
    for name in (mine, *others):
        leave_behind(url, name)
        if "/" not in name and '"' not in name:
            (blobs / name / "models").mkdir(parents=True)
            hours_ago(blobs / name)
    passes(variables, "--database-url", url, "--blobs", str(blobs))
    assert sorted(schemas(url)) == sorted(name.replace('""', '"') for name in others)
    assert sorted(entry.name for entry in blobs.iterdir()) == sorted(others[:-1])
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'public'").fetchone() == (1,)


def hours_ago(folder: Path) -> None:
    """As if nothing had been written there for two hours."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (time.time() - 7200, time.time() - 7200))


def test_a_leftover_of_another_role_is_in_nobodys_way(
    new_postgresql_database: NewDatabase, variables: dict[str, str]
) -> None:
    url = new_postgresql_database()
    name = url.split("/")[3].partition("?")[0]
    left = "fedddpm_selftest_" + "0" * 16
    leave_behind(url, left, f"owner_of_{name}")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE other_{name} LOGIN".encode())
        connection.execute(f"GRANT CREATE ON DATABASE {name} TO other_{name}".encode())
    passes(variables, "--database-url", url.replace("postgres@", f"other_{name}@"))
    assert schemas(url) == [left]


def test_a_leftover_that_cannot_be_removed_is_a_warning(
    new_postgresql_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blobs go first, so that the next selftest knows of both as long as something is left."""
    url, left = new_postgresql_database(), "fedddpm_selftest_" + "1" * 16
    leave_behind(url, left)
    (tmp_path / "blobs" / left).mkdir(parents=True)
    monkeypatch.setattr(scratch_schema, "LOCK_S", 1)
    resolved, steps = Settings(data=tmp_path, database_url=url).resolved_database_url, Steps()
    with psycopg.connect(url) as holder:
        holder.execute(f"LOCK TABLE {left}.things IN SHARE MODE".encode())  # a transaction that stays open
        run_selftest(resolved, str(tmp_path / "blobs"), steps)
    (warning,) = [step.result for step in steps.done if step.name == "warning"]
    assert f"the schema {left} of an earlier selftest stays: canceling statement due to lock timeout" in warning
    assert list((tmp_path / "blobs").iterdir()) == []
    run_selftest(resolved, None, Steps())
    assert schemas(url) == []


def untouched(url: str) -> bool:
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT 1 FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return tables == [] and schemas(url) == []


def test_options_that_swallow_the_schema(new_postgresql_database: NewDatabase, variables: dict[str, str]) -> None:
    url = new_postgresql_database()
    line = fails(variables, "--database-url", f"{url}&options=-capplication_name%3Dx%5C")
    assert "connections do not stay in the selftest's own schema, but work in public" in line
    assert untouched(url)
    passes(variables, "--database-url", f"{url}&options=-capplication_name%3Dx")


def test_a_pooler_that_drops_options(
    new_postgresql_database: NewDatabase, variables: dict[str, str], tmp_path: Path
) -> None:
    url = new_postgresql_database()
    name, _, folder = url.split("/", 3)[3].partition("?host=")
    with dropping_options(Path(folder)) as port:
        line = fails(variables, "--database-url", f"postgresql://postgres@127.0.0.1:{port}/{name}")
    assert "PgBouncer with ignore_startup_parameters" in line
    assert untouched(url)


def test_a_pooler_that_shares_connections_by_transaction(
    new_postgresql_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind one a session's lock is on another connection by the next statement: as gone as a transaction's lock."""
    url = new_postgresql_database()
    monkeypatch.setattr(scratch_schema, "_TRY_LOCK", text("SELECT pg_try_advisory_xact_lock(hashtext(:name))"))
    with pytest.raises(SelftestError, match="a pooler that shares connections by transaction"):
        run_selftest(Settings(data=tmp_path, database_url=url).resolved_database_url, None, Steps())
    assert untouched(url)


def test_old_folders_without_postgresql(variables: dict[str, str], tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    old, young, other = (blobs / name for name in (PREFIX + "a" * 16, PREFIX + "b" * 16, PREFIX + "old"))
    for folder in (old, young, other):
        (folder / "models").mkdir(parents=True)
        (folder / "models" / "x").write_text("x")
        hours_ago(folder)
    (young / "models" / "y").write_text("y")
    passes(variables, "--blobs", str(blobs))
    assert sorted(blobs.iterdir()) == sorted([young, other])


def test_old_folders_in_an_object_store(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = open_blobs(s3_url)
    for name in (PREFIX + "a" * 16, PREFIX + "old"):
        blobs.put(f"{name}/models/x", b"x")
    warned: list[str] = []
    leftovers.remove_old_folders(s3_url, warned.append)
    assert blobs.folders("") == [PREFIX + "a" * 16, PREFIX + "old"]  # it may be at work
    monkeypatch.setattr(leftovers, "OLD_S", -60.0)
    leftovers.remove_old_folders(s3_url, warned.append)
    assert [blobs.exists(f"{name}/models/x") for name in (PREFIX + "a" * 16, PREFIX + "old")] == [False, True]
    assert blobs.changed_at(PREFIX + "a" * 16) is None
    assert warned == []
