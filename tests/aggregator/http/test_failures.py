"""The disk is full, the database is away, the code has a bug: honest documents, and no half-written round."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from tests.aggregator.support.driver import STEPS, ProblemError, drive, take_seats
from tests.aggregator.support.sites import NewFederation, Serve
from tests.aggregator.support.watching import check_part, first_state, until

from fedddpm_aggregator.background import opening_threads
from fedddpm_aggregator.db.engine import Database
from fedddpm_aggregator.http import problems
from fedddpm_aggregator.http.guard import Guard, Sizes
from fedddpm_protocol.wire.phases import Phase


class FullDisk:
    """While set, every blob write fails as on a full disk, at its fsync."""

    def __init__(self) -> None:
        self.full = False
        self._fsync = os.fsync

    def __call__(self, descriptor: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._fsync(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    disk = FullDisk()
    monkeypatch.setattr(os, "fsync", disk)
    return disk


def test_a_full_disk_during_an_upload(new_federation: NewFederation, serve: Serve, disk: FullDisk) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    seats = take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder")
    drive(seats, ["join", "share"])
    seats[0].mask()
    disk.full = True
    with pytest.raises(ProblemError) as refusal:
        seats[0].put("decoder", 0)
    assert (refusal.value.status, refusal.value.code) == (507, "storage-full")
    stored = seats[0].institution.send("GET", f"{seats[0].path}/upload").json()
    assert stored["chunks"]["decoder"] == {}
    assert [path for path in (federation.settings.data / "blobs" / "uploads").rglob("*") if path.is_file()] == []
    disk.full = False
    for segment, index in seats[0].chunks:
        seats[0].put(segment, index)
    seats[0].finish()
    drive(seats[1:], ["upload"])
    drive(seats, ["confirm", "unmask"])
    check_part(site, 0, seats)


def test_a_full_disk_while_opening_delays_the_round(
    new_federation: NewFederation, serve: Serve, disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening_threads, "RETRY_S", 0.3)
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    seats = take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder")
    drive(seats, STEPS[:4])
    disk.full = True
    drive(seats, ["unmask"])
    state = until(site, lambda state: state.sessions["decoder"].phase is Phase.OPENING)
    assert state.results == 0
    disk.full = False
    check_part(site, 0, seats)


def test_single_uploads_are_deleted_once_the_result_is_durable(
    new_federation: NewFederation, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where none are kept for checks of the sum."""
    monkeypatch.setenv("FEDDDPM_AGGREGATOR_KEEP_UPLOADS_S", "0")
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    seats = take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder")
    drive(seats, STEPS[:4])
    uploads = federation.settings.data / "blobs" / "uploads"
    assert list(uploads.rglob("0"))
    drive(seats, ["unmask"])
    check_part(site, 0, seats)
    until(site, lambda state: not list(uploads.iterdir()))


def test_a_damaged_chunk_ends_the_attempt_and_no_wrong_sum_is_opened(
    new_federation: NewFederation, serve: Serve
) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    seats = take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder")
    drive(seats, STEPS[:4])
    (chunk,) = federation.settings.data.glob("blobs/uploads/*/decoder/a/decoder/0")
    chunk.write_bytes(bytes(chunk.stat().st_size))
    drive(seats, ["unmask"])
    state = until(site, lambda state: state.attempt == 1)
    assert state.results == 0


def test_a_full_sqlite_database_is_told_as_full_storage(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/small.sqlite")
    with pytest.raises(OperationalError) as failure, database.write() as db:  # noqa: PT012
        db.execute(text("CREATE TABLE t (x TEXT)"))
        db.execute(text("PRAGMA max_page_count = 10"))
        db.execute(text("INSERT INTO t VALUES (:x)"), {"x": "x" * 1_000_000})
    database.close()
    response = problems.problem_of(failure.value)
    assert (response.status_code, json.loads(bytes(response.body))["code"]) == (507, "storage-full")


def test_a_database_that_is_away_is_told_as_unavailable() -> None:
    database = Database("postgresql+psycopg://nobody@/none?host=/nonexistent")
    with pytest.raises(OperationalError) as failure, database.read() as db:
        db.execute(text("SELECT 1"))
    database.close()
    response = problems.problem_of(failure.value)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert b"nonexistent" not in bytes(response.body)


def ask(method: str, path: str, content: bytes | AsyncIterator[bytes] | None = None) -> httpx.Response:
    """A request to a small application behind the same guard and the same problem documents."""
    app = FastAPI()
    problems.install(app)

    @app.get("/bug")
    def bug() -> None:
        raise RuntimeError("the secret is 42")

    @app.post("/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    app.add_middleware(Guard, sizes=Sizes(1000, 2000))

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, content=content)

    return asyncio.run(send())


def test_a_bug_shows_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    response = ask("GET", "/bug")
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "internal"
    assert "42" not in response.text
    assert "the secret is 42" in caplog.text


def test_no_more_than_the_limit_is_read() -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 100
            yield b"x" * 100

    response = ask("POST", "/echo", endless())
    assert (response.status_code, response.json()["code"]) == (413, "too-large")
    assert read == 1100
    response = ask("POST", "/echo", b"x" * 1001)
    assert response.status_code == 413
    assert "1001" in response.json()["detail"]
    assert ask("POST", "/echo", b"x" * 1000).json() == 1000
