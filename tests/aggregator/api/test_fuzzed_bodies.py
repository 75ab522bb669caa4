"""A member that sends broken messages at every step gets clear refusals, and the round of the others is exact."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
from pydantic import BaseModel
from tests.aggregator.support.driver import Seat, drive, take_seats
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.sites import Serve
from tests.aggregator.support.watching import check_part, first_state

VERSIONS = 30  # of each message
JSON = {"content-type": "application/json"}


def broken(good: bytes, dice: np.random.Generator) -> Iterator[bytes]:
    """Flipped, cut, doubled and stuffed variants of a body, and JSON that is something else."""
    yield from (
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"body": 1e999}',
        b"[" * 5000,
        b'{"a":' * 500,
        good[:-1],
        good + good,
    )
    fields = json.loads(good)
    for name in fields:
        for value in (None, "", 0, -1, [], {}, "A" * 5000, [fields[name]] * 3, True):
            yield json.dumps({**fields, name: value}).encode()
    while True:
        changed = bytearray(good)
        for _ in range(int(dice.integers(1, 4))):
            changed[dice.integers(len(changed))] = dice.integers(256)
        if bytes(changed) != good:
            yield bytes(changed)


class Clumsy:
    """In the place of a seat's ``post``: sends many broken versions of each message before the right one."""

    def __init__(self, seat: Seat, dice: np.random.Generator) -> None:
        self._seat, self._post, self._dice = seat, seat.post, dice
        self.refused: Counter[str] = Counter()

    def __call__(self, route: str, message: BaseModel) -> httpx.Response:
        good = message.model_dump_json().encode()
        for body in islice(broken(good, self._dice), VERSIONS):
            request = self._seat.institution.signed("POST", f"{self._seat.path}/{route}", body, JSON)
            response = self._seat.institution.http.send(request)
            if response.status_code < 300:  # the same message in other words
                assert json.loads(body) == json.loads(good), body
                continue
            assert 400 <= response.status_code < 500, (response.text, body)
            assert response.json()["detail"]
            self.refused[route] += 1
        return self._post(route, message)


def test_broken_messages_do_not_touch_the_round(tmp_path: Path, serve: Serve) -> None:
    federation, dice = Federation(tmp_path), np.random.default_rng(5)
    federation.start_run(rounds=1)
    site = serve(federation)
    seats = take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder")
    clumsy = Clumsy(seats[0], dice)
    seats[0].post = clumsy  # type: ignore[method-assign]
    drive(seats, ("join", "share"))
    seats[0].mask()
    for index, data in ((0, b""), (0, b"x"), (10**9, seats[0].chunks["decoder", 0]), (0, bytes(10**6))):
        path = f"{seats[0].path}/chunks/decoder/{index}"
        response = seats[0].institution.http.send(seats[0].institution.signed("PUT", path, data))
        assert 400 <= response.status_code < 500, response.text
    for segment, index in seats[0].chunks:
        seats[0].put(segment, index)
    seats[0].finish()
    drive(seats[1:], ("upload",))
    drive(seats, ("confirm", "unmask"))
    check_part(site, 0, seats)
    assert set(clumsy.refused) == {"joins", "shares", "upload", "confirmations", "unmask"}
    assert min(clumsy.refused.values()) > VERSIONS // 2
