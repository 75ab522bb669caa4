"""Polls behind gateways and proxies with limits of their own, against a real server that misbehaves by script."""

import httpx
import pytest
from tests.sdk.support.scripted import Limited, Script, connect, problem, serve

from fedddpm.config import NetworkOptions
from fedddpm.identity import Identity
from fedddpm.monitoring.vitals import LiveVitals
from fedddpm.transport import connection as connection_module
from fedddpm.transport import poll_length
from fedddpm.transport.connection import Connection
from fedddpm.transport.endpoints import FederationApi
from fedddpm.transport.problems import UnreachableError
from fedddpm_protocol.untrusted.bounds import NOTHING
from fedddpm_protocol.wire.api import RunState


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(connection_module, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(connection_module, "LONGEST_DELAY_S", 0.05)


def state_reply():
    """The state, after some signs of life."""
    fields = dict.fromkeys(("run", "method", "spec", "last_result"))
    fields |= dict.fromkeys(("round", "rounds", "attempt", "results", "server_time"), 0)
    fields |= {"version": 3, "roster_version": 1, "status": "waiting", "sessions": {}}
    state = RunState.model_validate(fields).model_dump_json().encode()
    return 200, {"Content-Type": "application/json"}, b"   " + state


def waits(script):
    """How long each poll was to wait."""
    return [float(path.rpartition("wait=")[2]) for _, path, _, _ in script.requests]


@pytest.fixture
def quick_limits(monkeypatch):
    """Gateways cut after tenths of a second."""
    monkeypatch.setattr(poll_length, "CUT_AFTER_S", 0.2)
    monkeypatch.setattr(poll_length, "SHORTEST_S", 0.15)


@pytest.mark.usefixtures("quick_limits")
def test_polls_are_shorter_where_signs_of_life_do_not_come_through():
    script = Script("stall", state_reply())
    identity, options = Identity.generate("hospital-a"), NetworkOptions(patience_s=5)
    options = options.model_copy(update={"read_timeout_s": 0.4})
    outages = []
    with serve(script) as url, Connection(url, identity, "hospital-a", options, on_outage=outages.append) as connection:
        transport = FederationApi(connection)
        assert transport.state(2, 240.0).version == 3
        assert transport.state(3, 240.0).version == 3
        assert transport.state(3, 0.1).version == 3
    assert waits(script) == pytest.approx([240.0, 0.3, 0.3, 0.1])
    assert outages == []


@pytest.mark.usefixtures("quick_limits")
@pytest.mark.parametrize("gateway", ["cut off", "late hang up", 408, 502, 504])
def test_polls_are_shorter_where_a_gateway_ends_long_answers(gateway):
    outages, script = [], Script(Limited(0.3, gateway, state_reply()))
    with serve(script) as url, connect(url, on_outage=outages.append) as connection:
        transport = FederationApi(connection)
        for after in (2, 2, 2):
            assert transport.state(after, 240.0).version == 3
    assert waits(script)[0] == 240.0
    assert len(script.requests) == 4, "one poll was cut, the shorter ones pass"
    assert all(0.15 <= wait < 100 for wait in waits(script)[1:])
    assert outages == [], "an aggregator that is well is not away"


def test_every_piece_of_an_answer_is_a_sign_of_life(tmp_path):
    """Also the spaces of a poll that is quiet, while it lasts; a failure is none."""
    vitals, beats = LiveVitals(), []
    vitals.away()

    def heard():
        vitals.heard()
        beats.append(len(script.requests))

    script = Script(Limited(0.2, "cut off", ()), "whole", state_reply())
    with serve(script) as url, connect(url, on_piece=heard) as connection:
        with pytest.raises(httpx.RemoteProtocolError):
            connection._send("GET", "/v1/state?wait=240", NOTHING)
        assert beats == [1], "a space came before the poll ended"
        assert vitals.read().served_at is not None
        assert not vitals.read().away
        FederationApi(connection).download_model(b"m" * 32, tmp_path / "m", 300_000)
        assert beats.count(2) > 1
    with serve(Script((503, {}, b"<html>away</html>"))) as url, connect(url, 0.0, on_piece=heard) as connection:
        beats.clear()
        with pytest.raises(UnreachableError):
            FederationApi(connection).roster()
    assert beats == []


@pytest.mark.usefixtures("quick_limits")
def test_a_longer_poll_is_tried_again_after_many_quiet_ones(monkeypatch):
    """A restart that cut a poll does not make them short for ever; a limit that stays is met more and more seldom."""
    monkeypatch.setattr(poll_length, "QUIET_POLLS", 2)
    now = [100.0]
    monkeypatch.setattr("fedddpm.transport.poll_length.time.monotonic", lambda: now[0])
    polls, asked = poll_length.PollLength(45.0), []
    for _ in range(16):
        asked.append(polls.begin(240.0))
        now[0] += min(asked[-1], 60.0)
        polls.passed() if asked[-1] < 60.0 else polls.cut(httpx.RemoteProtocolError("cut"))
    assert asked == [240.0, 30.0, 30.0, 60.0] + [30.0] * 4 + [60.0] + [30.0] * 7
    polls, asked = poll_length.PollLength(45.0), []
    polls.begin(240.0)
    now[0] += 80.0
    polls.cut(httpx.ReadError("a restart"))
    for _ in range(10):
        asked.append(polls.begin(240.0))
        now[0] += asked[-1]
        polls.passed()
    assert asked == [40.0] * 2 + [80.0] * 2 + [160.0] * 2 + [240.0] * 4


@pytest.mark.usefixtures("quick_limits")
@pytest.mark.parametrize("trouble", ["late hang up", problem(504, "unavailable")])
def test_an_aggregator_that_goes_away_in_a_poll_is_an_outage(trouble):
    """Cut once, and nobody there when asked again; or it says by itself that it cannot serve."""
    outages = []
    script = Script(Limited(0.3, trouble, ()), "hang up", "hang up", state_reply())
    with serve(script) as url, connect(url, on_outage=outages.append) as connection:
        assert FederationApi(connection).state(2, 240.0).version == 3
    assert len(script.requests) == 4
    assert [outage is None for outage in outages] == [False] * (len(outages) - 1) + [True]
    assert len(outages) == (3 if isinstance(trouble, str) else 4)


@pytest.mark.usefixtures("quick_limits")
def test_an_aggregator_whose_polls_are_always_cut_is_given_up():
    script = Script(Limited(0.25, "late hang up", (), always=True))
    with serve(script) as url, connect(url, patience_s=0.8) as connection, pytest.raises(UnreachableError):
        FederationApi(connection).state(2, 240.0)
    assert len(script.requests) >= 2
    assert min(waits(script)) >= 0.1


def test_what_fails_at_once_is_an_outage_and_polls_stay_long():
    outages, script = [], Script((504, {}, b"<html>away</html>"), "hang up", state_reply())
    with serve(script) as url, connect(url, on_outage=outages.append) as connection:
        assert FederationApi(connection).state(2, 240.0).version == 3
    assert waits(script) == [240.0] * 3
    assert [outage is None for outage in outages] == [False, False, True]
