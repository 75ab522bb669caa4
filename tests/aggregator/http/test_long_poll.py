"""Long polls: spaces while nothing happens, the state at once when something does, and an end in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi.responses import StreamingResponse
from prometheus_client import Gauge
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.sites import Site
from tests.aggregator.support.watching import first_state

from fedddpm_aggregator.http import long_poll, version_watch
from fedddpm_aggregator.http.version_watch import Newest, VersionWatch
from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_aggregator.service.administration.runs import pause_run
from fedddpm_protocol.wire.api import RunState

BEAT_S = 0.1


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(long_poll, "BEAT_S", BEAT_S)
    federation = Federation(tmp_path)
    federation.start_run(rounds=1, join_s=300.0)
    with served_here(federation.settings) as url, closing(Site(federation, url)) as there:
        yield there


@contextmanager
def waiting(site: Site, name: str, wait_s: float) -> Iterator[tuple[httpx.Response, Iterator[bytes]]]:
    """An open poll from the newest version on: its head, and the pieces of its body as they come.

    The first attempt is there, and nothing changes until somebody joins or its join phase ends.
    """
    institution, version = site[name], first_state(site).version
    request = institution.signed("GET", f"/v1/state?after={version}&wait={wait_s}")
    response = institution.http.send(request, stream=True)
    try:
        yield response, response.iter_raw()
    finally:
        response.close()


def test_spaces_come_while_nothing_happens(site: Site) -> None:
    with waiting(site, "a", 300.0) as (response, pieces):
        assert response.status_code == 200
        assert response.headers["x-accel-buffering"] == "no"
        assert [next(pieces) for _ in range(3)] == [b" ", b" ", b" "]


def test_a_wait_without_news_ends_in_time_with_the_state(site: Site) -> None:
    with waiting(site, "a", 5 * BEAT_S) as (_, pieces):
        whole = b"".join(pieces)
    assert whole.lstrip(b" ").startswith(b"{")
    assert RunState.model_validate_json(whole).version == site["a"].state().version


def test_news_end_the_wait_at_once(site: Site) -> None:
    with waiting(site, "a", 300.0) as (_, pieces):
        assert next(pieces) == b" "
        with site.federation.context() as ctx:
            pause_run(ctx)
        state = RunState.model_validate_json(b"".join(pieces))
    assert (state.status, state.version) == ("stalled", site["a"].state().version)


def test_a_poll_shorter_than_a_beat_is_a_plain_answer(site: Site) -> None:
    with waiting(site, "a", BEAT_S / 2) as (response, pieces):
        assert int(response.headers["content-length"]) == len(b"".join(pieces))


def test_waiting_is_counted_until_it_ends(site: Site) -> None:
    def polls() -> float:
        metrics = httpx.get(f"{site.url}/metrics").text
        line = next(line for line in metrics.splitlines() if line.startswith("fedddpm_long_polls_waiting "))
        return float(line.split()[1])

    with waiting(site, "a", 300.0) as (_, pieces):
        next(pieces)
        next(pieces)
        assert polls() == 1
    _until(lambda: polls() == 0)


def test_a_poll_that_beats_ends_when_its_server_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_poll, "BEAT_S", BEAT_S)

    async def poll() -> list[bytes]:
        watching, newest = VersionWatch(lambda: 7), Newest(lambda: (7, b"{}"))
        answer = await long_poll.long_poll(watching, newest, Gauge("polls", "Polls", registry=None), 7, 300.0)
        assert isinstance(answer, StreamingResponse)
        pieces = []
        async for piece in answer.body_iterator:
            pieces.append(piece)
            if len(pieces) == 2:
                watching.release()
        return [bytes(piece) for piece in pieces]

    assert asyncio.run(poll()) == [b" ", b" ", b"{}"]


def test_who_saw_more_at_another_replica_gets_nothing_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_watch, "FALLBACK_S", 1000.0)  # this replica does not notice what others change
    federation = Federation(tmp_path)
    federation.start_run(rounds=1, join_s=300.0)
    with served_here(federation.settings) as url, closing(Site(federation, url)) as site:
        _until(lambda: site["a"].state().spec is not None)
        before = site["a"].state(site["a"].state().version, 0.05)
        with federation.context() as other:
            pause_run(other)
        after = site["a"].state(before.version, 0.05)  # well within the time that answers are kept
    assert (before.status, after.status) == ("running", "stalled")
    assert after.version > before.version


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
