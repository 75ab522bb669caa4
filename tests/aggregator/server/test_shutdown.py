"""SIGTERM to real processes: open requests end well, leases go back, an opening is finished by somebody else."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from benchmarks.load.postgresql import PostgreSQL
from sqlalchemy import func, select
from tests.aggregator.support.driver import Seat, drive, take_seats
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.processes import WatchedProcess, freeze, served_over
from tests.aggregator.support.scrapes import Scrape
from tests.aggregator.support.sites import Site
from tests.aggregator.support.watching import check_part, first_state, until
from tests.support.postgresql import postgresql_or_skip

from fedddpm_aggregator.app import data_directory
from fedddpm_aggregator.db.tables import LeaseRow
from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_protocol.wire.phases import Phase


def _seats(site: Site) -> list[Seat]:
    return take_seats(site.institutions.values(), site.federation.roster, first_state(site), "decoder")


def _send_half(server: WatchedProcess, request: httpx.Request) -> tuple[socket.socket, bytes]:
    """An upload whose body is half sent; the connection, and the rest."""
    connection = socket.create_connection(("127.0.0.1", server.port), 30)
    head = f"{request.method} {request.url.raw_path.decode()} HTTP/1.1\r\n".encode()
    head += b"".join(name + b": " + value + b"\r\n" for name, value in request.headers.raw) + b"\r\n"
    body = request.content
    connection.sendall(head + body[: len(body) // 2])
    return connection, body[len(body) // 2 :]


def test_an_upload_in_flight_is_stored_and_a_long_poll_ends(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.start_run(rounds=1)
    server = WatchedProcess(federation, drain_delay_s=1.0)
    server.start()
    with closing(Site(federation, server.url)) as site:
        seats = _seats(site)
        drive(seats, ["join", "share"])
        seats[0].mask()
        chunk = seats[0].chunks["decoder", 0]
        signed = site["a"].signed("PUT", f"{seats[0].path}/chunks/decoder/0", chunk)
        connection, rest = _send_half(server, signed)
        version = site["b"].state().version
        answered: list[int] = []
        poll = threading.Thread(target=lambda: answered.append(site["b"].state(version + 1000, 25.0).version))
        poll.start()
        _until_waiting(server)
        server.terminate()
        assert server.until("/readyz", 503).json() == {"status": "shutting down"}
        assert server.get("/healthz").status_code == 200
        poll.join(20)  # less than it asked for
        assert answered == [version]
        _until_refused(server)  # the socket closes while the upload is still open
        connection.sendall(rest)
        answer = connection.recv(4096)
        connection.close()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert server.wait() == 0
        server.kill()
        server.start()
        status = site["a"].send("GET", f"{seats[0].path}/upload").json()
        assert list(status["chunks"]["decoder"]) == ["0"]
        server.terminate()
        assert server.wait() == 0
    server.kill()
    with federation.context() as ctx, ctx.database.read() as db:
        assert db.scalar(select(func.count()).select_from(LeaseRow)) == 0


def _until_refused(server: WatchedProcess) -> None:
    with contextlib.suppress(httpx.TransportError):
        while True:
            server.get("/healthz")


def _until_waiting(server: WatchedProcess) -> None:
    while Scrape(server.get("/metrics").text)("fedddpm_long_polls_waiting") == 0:
        pass


def test_an_opening_is_given_back_and_another_process_ends_it(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.start_run(rounds=1)
    with data_directory(federation.settings) as ctx:
        ctx.pulse.leave()
        with served_over(ctx, federation.settings) as url, closing(Site(federation, url)) as site:
            seats = _seats(site)
            drive(seats)
            until(site, lambda state: state.sessions["decoder"].phase is Phase.OPENING)
    left = [path for path in (federation.settings.data / "blobs" / "opened").rglob("*") if path.is_file()]
    assert left == []
    with federation.context() as ctx, ctx.database.read() as db:
        assert db.scalar(select(func.count()).select_from(LeaseRow)) == 0
    with served_here(federation.settings) as url, closing(Site(federation, url)) as site:
        for seat in seats:
            seat.institution = site[seat.name]
        check_part(site, 0, seats)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQL]:
    with postgresql_or_skip() as server:
        yield server


def test_another_replica_sweeps_at_once(postgresql: PostgreSQL, tmp_path: Path) -> None:
    federation = Federation(tmp_path, postgresql.new_database())
    federation.start_run(rounds=1)
    first, second = WatchedProcess(federation, lease_s=600), WatchedProcess(federation, lease_s=600)
    first.start()
    _until_sweeping(first)
    second.start()
    try:
        assert _lease(second) == 0
        first.terminate()
        assert first.wait() == 0
        _until_sweeping(second)  # ten minutes before the lease would have run out
    finally:
        first.kill()
        second.kill()


def _lease(server: WatchedProcess) -> float:
    return Scrape(server.get("/metrics").text)("fedddpm_sweeper_lease_held")


def _until_sweeping(server: WatchedProcess) -> None:
    while _lease(server) == 0:
        pass


def test_a_process_whose_database_hangs_ends_all_the_same(postgresql: PostgreSQL, tmp_path: Path) -> None:
    federation = Federation(tmp_path, postgresql.new_database())
    server = WatchedProcess(federation, shutdown_grace_s=0)
    server.start()
    server.until("/readyz", 200)
    assert postgresql._server is not None
    thaw = freeze(postgresql._server.pid)
    try:
        server.until("/readyz", 503)
        server.terminate()
        assert server.wait(60) == 1
    finally:
        thaw()
        server.kill()
    lines = [json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines()]
    assert lines[-1]["message"] == "shutting down took too long"
