"""A newer release has migrated: what this one does while it serves, and when it starts again (a rollback)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import event, select, text
from tests.aggregator.support.driver import drive, take_seats
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.future_release import ADDS, RENAMES, FutureRelease
from tests.aggregator.support.processes import WatchedProcess
from tests.aggregator.support.sites import NewFederation, Site
from tests.aggregator.support.watching import check_part, first_state, result_of

from fedddpm_aggregator.background import opening_threads
from fedddpm_aggregator.background.sweeper import Sweeper
from fedddpm_aggregator.db.schema import floor_of, revision_of, this_release
from fedddpm_aggregator.db.tables import AttemptRow, LeaseRow
from fedddpm_aggregator.errors import OperatorError, UnavailableError
from fedddpm_aggregator.service.context import Context

Start = Callable[[Federation], WatchedProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    running = []

    def begin(federation: Federation) -> WatchedProcess:
        running.append(WatchedProcess(federation))
        running[-1].start()
        return running[-1]

    yield begin
    for server in running:
        server.kill()


def upgrade(federation: Federation, release: FutureRelease) -> None:
    """What the newer release's hook does: bring the schema up to date, beside servers of this release."""
    url = ["--database-url", federation.database_url] if federation.database_url else []
    done = release.run("init", "--data", str(federation.settings.data), *url)
    assert done.returncode == 0, done.stderr
    with federation.context() as ctx, ctx.database.engine.connect() as connection:
        assert revision_of(connection) == release.head


def a_round(federation: Federation, url: str, round_index: int) -> None:
    site = Site(federation, url)
    seats = take_seats(site.institutions.values(), federation.roster, first_state(site, round_index), "decoder")
    drive(seats)
    check_part(site, round_index, seats)
    assert result_of(site, round_index).round == round_index
    site.close()


def test_rounds_go_on_over_a_schema_with_additions(new_federation: NewFederation, start: Start, tmp_path: Path) -> None:
    federation = new_federation()
    federation.start_run(rounds=3)
    future = FutureRelease(tmp_path / "future")
    server = start(federation)
    a_round(federation, server.url, 0)
    future.migration(ADDS, usable_from=this_release().head)
    upgrade(federation, future)
    server.until("/readyz", 200)
    a_round(federation, server.url, 1)
    server.kill()
    again = start(federation)  # the upgrade was taken back
    again.until("/readyz", 200)
    a_round(federation, again.url, 2)
    with federation.context() as ctx, ctx.database.engine.connect() as connection:
        assert revision_of(connection) == future.head
        assert floor_of(connection, future.head) == this_release().head  # as the newer release left it


@pytest.mark.parametrize("stated", [True, False])
def test_a_schema_that_this_release_cannot_use(
    new_federation: NewFederation, start: Start, tmp_path: Path, stated: bool
) -> None:
    federation = new_federation()
    future = FutureRelease(tmp_path / "future")
    server = start(federation)
    server.until("/readyz", 200)
    added = future.migration(ADDS, usable_from=this_release().head)
    broken = future.migration(RENAMES, usable_from=added if stated else None)
    with pytest.raises(OperatorError, match=f"brought to schema {broken} by a newer release"):
        upgrade(federation, future)
    assert server.until("/readyz", 503).json()["checks"]["schema"] == "not this version's"
    assert httpx.get(f"{server.url}/healthz", trust_env=False).status_code == 200
    refusal = server.until("/v1/state", 503).json()
    assert (refusal["code"], "replace this server by the newer release" in refusal["detail"]) == ("unavailable", True)
    server.kill()
    lines = [json.loads(line) for line in (federation.folder / "server.log").read_text().splitlines()]
    told = [line for line in lines if "cannot use the schema" in line["message"]]
    assert [(line["level"], line["revision"]) for line in told] == [("error", broken)]
    assert [line for line in lines if "traceback" in line] == []
    with pytest.raises(AssertionError, match="Start the newer release again, or restore the backup"):
        start(federation)
    assert (federation.folder / "server.log").read_text().splitlines()[-1].startswith("error: ")


def set_revision(ctx: Context, revision: str) -> None:
    with ctx.database.write() as db:
        db.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def test_nothing_is_done_on_it(
    new_federation: NewFederation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    concluded: list[int] = []
    monkeypatch.setattr(opening_threads, "conclude", lambda _ctx, attempt: concluded.append(attempt))
    federation = new_federation()
    federation.start_run()
    with federation.context() as ctx:
        at_work = opening_threads.OpeningThreads(ctx)
        sweeper = Sweeper(ctx, at_work, 0.1)
        set_revision(ctx, "9999")
        for _ in range(3):
            sweeper.tick(0.1)
        at_work.submit(1)
        at_work.close(10)
        with ctx.database.read() as db:
            assert db.scalars(select(AttemptRow)).all() == []
            assert db.scalars(select(LeaseRow)).all() == []
        assert concluded == []
        with pytest.raises(UnavailableError, match="too old"):
            ctx.schema.require_open()
        set_revision(ctx, this_release().head)
        assert ctx.schema.look(kept_s=0)
        ctx.schema.require_open()
        at_work = opening_threads.OpeningThreads(ctx)
        Sweeper(ctx, at_work, 0.1).tick(0.1)
        at_work.submit(1)
        at_work.close(10)
        with ctx.database.read() as db:
            assert len(db.scalars(select(AttemptRow)).all()) == 1
        assert concluded == [1]
    said = [record.levelname for record in caplog.records if "schema" in record.getMessage()]
    assert said == ["ERROR", "WARNING"]


def test_looks_are_rare(new_federation: NewFederation) -> None:
    with new_federation().context() as ctx:
        looks = []
        event.listen(ctx.database.engine, "before_cursor_execute", lambda *args: looks.append(args[2]))
        for _ in range(10):
            assert ctx.schema.look(kept_s=3600)
        assert looks.count("SELECT version_num FROM alembic_version") == 1


def test_a_revision_that_nobody_wrote_a_floor_for(new_federation: NewFederation) -> None:
    with new_federation().context() as ctx:
        with ctx.database.write() as db:
            db.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(OperatorError, match=r"schema 9999 .* is too old"):
            ctx.database.migrate()


def test_this_release_names_a_floor_that_it_knows(new_federation: NewFederation) -> None:
    release = this_release()
    assert release.floor in release.known
    with new_federation().context() as ctx, ctx.database.engine.connect() as connection:
        assert (revision_of(connection), floor_of(connection, release.head)) == (release.head, release.floor)
