"""Health and readiness tell the truth: a database that hangs, is gone or is another's, and storage that fails."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import httpx
import psycopg
import pytest
from benchmarks.load.postgresql import PostgreSQL
from sqlalchemy import text
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.processes import WatchedProcess, freeze, served_over
from tests.aggregator.support.scrapes import Scrape
from tests.support.postgresql import postgresql_or_skip

from fedddpm_aggregator.app import data_directory
from fedddpm_aggregator.monitoring.probe import Probe
from fedddpm_aggregator.telemetry import pulse


@dataclass
class Running:
    postgresql: PostgreSQL
    url: str
    server: WatchedProcess


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with postgresql_or_skip() as postgresql:
        url = postgresql.new_database()
        federation = Federation(tmp_path_factory.mktemp("health"), url)
        federation.start_run()
        server = WatchedProcess(federation)
        server.start()
        try:
            server.until("/readyz", 200)
            yield Running(postgresql, url, server)
        finally:
            server.kill()


def _unready(running: Running) -> dict[str, str]:
    response = running.server.until("/readyz", 503)
    document = response.json()
    assert document["status"] == "not ready"
    for inside in ("psycopg", "sqlalchemy", "fedddpm-pg", str(running.server.federation.folder), "Error"):
        assert inside not in response.text
    checks: dict[str, str] = document["checks"]
    return checks


def test_a_database_that_hangs(running: Running) -> None:
    assert running.postgresql._server is not None
    thaw = freeze(running.postgresql._server.pid)
    try:
        assert _unready(running) == {"database": "does not answer", "schema": "unknown", "blobs": "ok"}
        assert running.server.get("/healthz").status_code == 200
        assert Scrape(running.server.get("/metrics").text)("fedddpm_database_up") == 0
    finally:
        thaw()
    assert running.server.until("/readyz", 200).json() == {"status": "ready"}
    assert Scrape(running.server.get("/metrics").text)("fedddpm_database_up") == 1


def test_a_database_that_is_gone_and_comes_back(running: Running) -> None:
    running.postgresql.stop_immediately()
    assert _unready(running) == {"database": "failed", "schema": "unknown", "blobs": "ok"}
    assert running.server.get("/healthz").json() == {"status": "alive"}
    running.postgresql.start()
    running.server.until("/readyz", 200)


def test_a_schema_of_another_version(running: Running) -> None:
    with psycopg.connect(running.url, autocommit=True) as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone() or ("",)
        connection.execute("UPDATE alembic_version SET version_num = 'another'")
        assert _unready(running) == {"database": "ok", "schema": "not this version's", "blobs": "ok"}
        connection.execute("UPDATE alembic_version SET version_num = %s", (revision,))
    running.server.until("/readyz", 200)


def test_storage_that_takes_no_byte(running: Running) -> None:
    _, most = resource.prlimit(running.server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(running.server.pid, resource.RLIMIT_FSIZE, (0, most))
    assert _unready(running) == {"database": "ok", "schema": "ok", "blobs": "failed"}
    resource.prlimit(running.server.pid, resource.RLIMIT_FSIZE, (most, most))
    running.server.until("/readyz", 200)


def test_storage_that_is_not_there(running: Running) -> None:
    blobs = running.server.federation.settings.data / "blobs"
    away = blobs.rename(blobs.with_name("away"))
    assert _unready(running)["blobs"] == "failed"
    away.rename(blobs)
    running.server.until("/readyz", 200)


def test_a_stuck_thread_is_told_although_the_database_answers(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process holds SQLite's write lock: the sweeper waits, reads go on."""
    monkeypatch.setitem(pulse.STUCK_S, pulse.SWEEPER, 0.5)
    federation = Federation(tmp_path_factory.mktemp("stuck"))
    with (
        data_directory(federation.settings) as ctx,
        federation.context() as other,
        served_over(ctx, federation.settings) as url,
        closing(other.database.engine.connect()) as holder,
    ):
        assert httpx.get(f"{url}/healthz", trust_env=False).json() == {"status": "alive"}
        holder.execution_options(fedddpm_write=True)
        holder.execute(text("SELECT 1"))
        assert _first(url, 503) == {"status": "stuck", "threads": ["sweeper"]}
        holder.rollback()
        assert _first(url, 200) == {"status": "alive"}


def _first(url: str, status: int) -> object:
    for _ in range(300):
        response = httpx.get(f"{url}/healthz", trust_env=False)
        if response.status_code == status:
            return response.json()
        time.sleep(0.1)
    raise AssertionError(response.text)


def test_one_question_at_a_time_whoever_asks() -> None:
    asked, go_on = [], threading.Event()

    def question() -> int:
        asked.append(1)
        go_on.wait()
        return len(asked)

    probe = Probe(question)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            probe.answer(0.01)
    go_on.set()
    assert probe.answer(10) == 1
    assert asked == [1]
    assert probe.answer(10) == 2  # an answer is not kept unless asked for


def test_what_a_question_raised_is_raised_to_whoever_asked() -> None:
    def question() -> int:
        raise OSError("no such thing")

    probe = Probe(question, keep_s=60)
    for _ in range(2):
        with pytest.raises(OSError, match="no such thing"):
            probe.answer(10)
