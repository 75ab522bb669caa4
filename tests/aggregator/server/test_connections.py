"""Clients that take their time, come in crowds or leave in the middle; the round goes on beside them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.aggregator.support.driver import STEPS, drive, take_seats
from tests.aggregator.support.federations import Federation, ServerProcess
from tests.aggregator.support.sites import Site
from tests.aggregator.support.watching import check_part, first_state
from tests.aggregator.support.wire import answer, connected, ended, head_of, next_answer

IMPATIENT = {
    "FEDDDPM_AGGREGATOR_HEAD_S": "1",
    "FEDDDPM_AGGREGATOR_BODY_S": "1",
    "FEDDDPM_AGGREGATOR_RESPONSE_S": "1",
    "FEDDDPM_AGGREGATOR_MAX_CONNECTIONS": "40",
    "FEDDDPM_AGGREGATOR_MAX_CONNECTIONS_PER_ADDRESS": "30",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(Federation(tmp_path_factory.mktemp("slow")))
    process.variables = IMPATIENT
    process.start()
    yield process
    process.kill()


@pytest.fixture(scope="module")
def site(server: ServerProcess) -> Iterator[Site]:
    site = Site(server.federation, server.url)
    yield site
    site.close()


def sockets_of(server: ServerProcess) -> int:
    assert server._process is not None
    folder = Path(f"/proc/{server._process.pid}/fd")
    links = []
    for entry in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(entry.readlink()))
    return sum(link.startswith("socket:") for link in links)


def test_a_head_that_does_not_come_whole_is_given_up(server: ServerProcess) -> None:
    for start in (b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\n"):
        with connected(server.url) as connection:
            connection.sendall(start)
            late = answer(ended(connection))
        assert (late.status, late.problem["code"]) == (408, "too-slow")
        assert late.headers["x-content-type-options"] == "nosniff"


def test_a_head_that_comes_byte_by_byte_is_given_up(server: ServerProcess) -> None:
    with connected(server.url) as connection:
        sent = 0
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-patience: " + b"x" * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
                sent += 1
        assert sent < 1000


def test_a_second_head_on_a_connection_is_given_up_too(server: ServerProcess) -> None:
    with connected(server.url) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert next_answer(connection).status == 200
        connection.sendall(b"GET /hea")
        assert answer(ended(connection)).problem["code"] == "too-slow"


def test_a_body_that_does_not_come_is_given_up(server: ServerProcess, site: Site) -> None:
    request = site["a"].signed("POST", "/v1/sessions/x/decoder/joins", b"x" * 1000)
    with connected(server.url) as connection:
        connection.sendall(head_of(request) + b"x" * 10)
        late = answer(ended(connection))
    assert (late.status, late.problem["code"]) == (408, "too-slow")


def test_the_rest_of_a_refused_body_is_not_read_for_ever(server: ServerProcess) -> None:
    with connected(server.url) as connection:
        connection.sendall(b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n")
        assert next_answer(connection).status == 401
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 500:
                connection.sendall(bytes(2**20))
                sent += 1
        assert sent < 500


def test_a_refused_body_leaves_the_connection_as_it_was(server: ServerProcess) -> None:
    with connected(server.url) as connection:
        for size in (10, 100_000):
            connection.sendall(b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
            assert next_answer(connection).status == 401
            connection.sendall(bytes(size))
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert answer(ended(connection)).status == 200


def test_who_does_not_read_responses_is_left(server: ServerProcess) -> None:
    time.sleep(2)  # whatever other tests left is closed
    before = sockets_of(server)
    with connected(server.url) as connection:
        connection.setblocking(False)
        request = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"
        deadline = time.monotonic() + 30
        opened = False
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                connection.send(request)
            opened = opened or sockets_of(server) > before
            if opened and sockets_of(server) <= before:
                break
        assert opened
        assert sockets_of(server) <= before


def test_an_address_gets_no_more_connections_than_allowed(server: ServerProcess) -> None:
    with contextlib.ExitStack() as crowd:
        for _ in range(30):
            crowd.enter_context(connected(server.url))
        refused = answer(ended(crowd.enter_context(connected(server.url))))
    assert (refused.status, refused.problem["code"]) == (503, "too-many-connections")
    with connected(server.url) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert answer(ended(connection)).status == 200


def test_slow_clients_do_not_stop_an_honest_round(server: ServerProcess, site: Site) -> None:
    server.federation.start_run(rounds=1)
    with contextlib.ExitStack() as crowd:
        for _ in range(20):
            crowd.enter_context(connected(server.url)).sendall(b"GET /v1/state HTTP/1.1\r\nhost: x\r\n")
        seats = take_seats(site.institutions.values(), server.federation.roster, first_state(site), "decoder")
        drive(seats, STEPS)
    check_part(site, 0, seats)


def test_a_truncated_upload_stores_nothing(server: ServerProcess, site: Site) -> None:
    server.federation.start_run(name="run-2", rounds=1, scale=3.0)
    deadline = time.monotonic() + 30
    while site["a"].state().run != "run-2" or site["a"].state().spec is None:
        assert time.monotonic() < deadline
    seats = take_seats(site.institutions.values(), server.federation.roster, first_state(site), "decoder")
    drive(seats, STEPS[:2])
    for seat in seats:
        seat.mask()
    seat = seats[0]
    (segment, index), data = next(iter(seat.chunks.items()))
    request = seat.institution.signed("PUT", f"{seat.path}/chunks/{segment}/{index}", data)
    with connected(server.url) as connection:
        connection.sendall(head_of(request) + data[:-1])
    status = seat.institution.send("GET", f"{seat.path}/upload").json()
    assert status["chunks"].get(segment, {}) == {}
    other = bytes([data[0] ^ 1]) + data[1:]
    with connected(server.url) as connection:
        connection.sendall(head_of(request) + other)
        refused = answer(ended(connection))
    assert (refused.status, refused.problem["code"]) == (401, "unauthenticated")
    assert seat.institution.send("GET", f"{seat.path}/upload").json()["chunks"].get(segment, {}) == {}
    for seat in seats:
        for segment, index in seat.chunks:
            seat.put(segment, index)
        seat.finish()
    drive(seats, STEPS[3:])
    deadline = time.monotonic() + 30
    while site["a"].state().results < 1:
        assert time.monotonic() < deadline
