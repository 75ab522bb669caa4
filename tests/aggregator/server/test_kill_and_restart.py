"""The server process is killed (SIGKILL) in every phase and started again; the round ends with the exact sum."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select
from tests.aggregator.support.driver import STEPS, Seat, drive, take_seats
from tests.aggregator.support.federations import Federation, ServerProcess
from tests.aggregator.support.sites import NewFederation, Site
from tests.aggregator.support.watching import check_part, first_state, result_of

from fedddpm_aggregator.db.engine import Database
from fedddpm_aggregator.db.tables import SessionRow
from fedddpm_protocol.agreement.model_layout import TensorSpec
from fedddpm_protocol.wire.phases import Phase

LONG = {
    "encoder": (TensorSpec("encoder.a", (4,)),),
    "bottleneck": (TensorSpec("bottleneck.a", (4,)),),
    "decoder": (TensorSpec("decoder.a", (700_000,)),),
}


class Killable:
    """A served federation whose server dies on demand."""

    def __init__(self, federation: Federation) -> None:
        self.server = ServerProcess(federation)
        self.server.start()
        self.site = Site(federation, self.server.url)

    def kill_and_restart(self) -> None:
        self.server.kill()
        self.server.start()

    def seats(self) -> list[Seat]:
        return take_seats(
            self.site.institutions.values(), self.site.federation.roster, first_state(self.site), "decoder"
        )


@pytest.fixture
def killable(new_federation: NewFederation, request: pytest.FixtureRequest) -> Iterator[Killable]:
    federation = new_federation(manifests=LONG) if "while_opening" in request.node.name else new_federation()
    changes: dict[str, Any] = {"chunk_coordinates": 2**17} if "while_opening" in request.node.name else {}
    federation.start_run(rounds=1, **changes)
    running = Killable(federation)
    yield running
    running.site.close()
    running.server.kill()


def test_killed_in_every_phase_before_opening(killable: Killable) -> None:
    seats = killable.seats()
    first, rest = seats[:2], seats[2:]
    for step in STEPS:
        if step == "upload":
            _upload_across_a_kill(killable, first)
        else:
            drive(first, [step])
            killable.kill_and_restart()
        drive(rest, [step])
    check_part(killable.site, 0, seats)


def _upload_across_a_kill(killable: Killable, seats: list[Seat]) -> None:
    """Some chunks before the kill, the others after it, and the first ones once more."""
    for seat in seats:
        seat.mask()
        seat.put("decoder", 0)
        seat.put("decoder", 1)
    killable.kill_and_restart()
    for seat in seats:
        status = seat.institution.send("GET", f"{seat.path}/upload").json()
        assert sorted(status["chunks"]["decoder"]) == ["0", "1"]
        assert not status["complete"]
        for segment, index in seat.chunks:
            seat.put(segment, index)
        seat.finish()


def test_killed_while_opening(killable: Killable) -> None:
    seats = killable.seats()
    drive(seats, STEPS[:-1])
    drive(seats[:-1], ["unmask"])
    database = Database(killable.site.federation.settings.resolved_database_url)
    last = threading.Thread(target=seats[-1].unmask)
    last.start()
    deadline = time.monotonic() + 60
    while _phase(database) != Phase.OPENING:
        assert time.monotonic() < deadline
    killable.server.kill()
    assert _phase(database) == Phase.OPENING  # killed before the sum was published
    database.close()
    killable.server.start()
    check_part(killable.site, 0, seats)
    last.join()


def _phase(database: Database) -> str | None:
    with database.read() as db:
        return db.scalar(select(SessionRow.phase))


def test_killed_again_and_again(killable: Killable) -> None:
    """Institutions act at the same time while the server dies six times at arbitrary moments."""
    seats = killable.seats()
    moments = random.Random(20240607)
    finished = threading.Event()

    def keep_killing() -> None:
        for _ in range(6):
            if finished.wait(moments.uniform(0.05, 0.6)):
                return
            killable.kill_and_restart()

    killer = threading.Thread(target=keep_killing)
    killer.start()
    try:
        with ThreadPoolExecutor(len(seats)) as pool:
            list(pool.map(lambda seat: drive([seat]), seats))
        result_of(killable.site, 0)
    finally:
        finished.set()
        killer.join()
    check_part(killable.site, 0, seats)
