"""Patience, problem documents, resumed downloads and counted bytes, against a real server that misbehaves by script."""

import gzip
import hashlib
import time

import pytest
from tests.sdk.support.scripted import CONTENT, ROSTER, Script, connect, problem, roster_reply, serve

from fedddpm.config import NetworkOptions
from fedddpm.errors import ConfigError, TransportError
from fedddpm.identity import Identity
from fedddpm.transport import connection as connection_module
from fedddpm.transport.connection import Connection
from fedddpm.transport.endpoints import FederationApi
from fedddpm.transport.problems import ClockError, NotEnrolledError, ProblemError, UnreachableError


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(connection_module, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(connection_module, "LONGEST_DELAY_S", 0.05)


def test_a_proxy_is_asked_instead():
    script = Script(roster_reply())
    with serve(script) as proxy:
        options = NetworkOptions(proxy=proxy, patience_s=0)
        identity = Identity.generate("hospital-a")
        with Connection("http://aggregator.invalid", identity, "hospital-a", options) as connection:
            assert FederationApi(connection).roster() == ROSTER
    assert script.requests[0][1] == "http://aggregator.invalid/v1/roster"


def test_every_request_is_signed_and_counted():
    script = Script(roster_reply())
    with serve(script) as url, connect(url) as connection:
        assert FederationApi(connection).roster() == ROSTER
        traffic = connection.meter.take()
    (_, path, headers, _) = script.requests[0]
    assert path == "/v1/roster"
    assert {"Signature", "Signature-Input", "Content-Digest"} <= {name.title() for name in headers}
    assert traffic.bytes_down > len(ROSTER.model_dump_json())
    assert traffic.bytes_up > 200
    assert not connection.meter.take()


@pytest.mark.parametrize("trouble", ["hang up", problem(503, "unavailable"), problem(507, "storage-full")])
def test_an_aggregator_that_is_away_is_waited_for(trouble):
    outages = []
    script = Script(trouble, trouble, trouble, roster_reply())
    with serve(script) as url, connect(url, on_outage=outages.append) as connection:
        assert FederationApi(connection).roster() == ROSTER
    assert len(script.requests) == 4
    assert [outage is None for outage in outages] == [False, False, False, True]
    nonces = {headers["Signature-Input"] for _, _, headers, _ in script.requests}
    assert len(nonces) == 4  # a repetition is no replay


def test_patience_ends_and_says_so():
    with connect("http://127.0.0.1:9", patience_s=0.2) as connection:
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="nothing is lost"):
            FederationApi(connection).roster()
        assert 0.2 <= time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (problem(403, "not-enrolled"), NotEnrolledError, "read out this fingerprint"),
        (problem(409, "conflicting-message"), ProblemError, "because of conflicting-message"),
        ((404, {}, b"<html>no</html>"), ProblemError, "aggregator_url"),
        (problem(404, "not-found", detail="Not Found"), ProblemError, "is no address of.*Check aggregator_url"),
        (problem(404, "not-found"), ProblemError, "refused: because of not-found"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), ProblemError, "302"),
        ((200, {}, b"<html>welcome</html>"), TransportError, "did not answer with a SignedDocument"),
    ],
)
def test_what_waiting_cannot_mend_is_said_at_once(reply, kind, message):
    script = Script(reply)
    with serve(script) as url, connect(url) as connection, pytest.raises(kind, match=message):
        FederationApi(connection).roster()
    assert len(script.requests) == 1


def test_the_clock_is_corrected_once_and_the_user_is_told():
    warnings, ahead = [], time.time() + 5000
    script = Script(problem(401, "clock-skew", server_time=ahead), roster_reply())
    with serve(script) as url, connect(url, on_warning=warnings.append) as connection:
        assert FederationApi(connection).roster() == ROSTER
    created = int(script.requests[1][2]["Signature-Input"].split("created=")[1].split(";")[0])
    assert created == pytest.approx(ahead, abs=5)
    assert "5000 s behind" in warnings[0] or "4999 s behind" in warnings[0]
    script = Script(problem(401, "clock-skew", server_time=ahead))
    with serve(script) as url, connect(url) as connection, pytest.raises(ClockError, match="clock"):
        FederationApi(connection).roster()
    assert len(script.requests) == 2


def test_a_broken_download_goes_on_where_it_stopped(tmp_path):
    script, seen = Script("cut", "cut", "whole"), []
    with serve(script) as url, connect(url) as connection:
        transport = FederationApi(connection)
        transport.download_model(b"m" * 32, tmp_path / "m", 300_000, lambda have, total: seen.append((have, total)))
        traffic = connection.meter.take()
    assert hashlib.sha256((tmp_path / "m").read_bytes()).digest() == hashlib.sha256(CONTENT).digest()
    assert [headers.get("Range") for _, _, headers, _ in script.requests] == [
        None,
        f"bytes={len(CONTENT) // 2}-",
        f"bytes={len(CONTENT) * 3 // 4}-",
    ]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert (traffic.parameters_down, traffic.payload_down) == (300_000, len(CONTENT))
    assert len(CONTENT) < traffic.bytes_down < len(CONTENT) + 2000


def test_a_download_that_never_ends_does_not_fill_the_disk(tmp_path):
    too_much = pytest.raises(TransportError, match="more than the 80 bytes")
    with serve(Script("whole")) as url, connect(url) as connection, too_much:
        FederationApi(connection).download_opened("run-1", 0, "decoder", tmp_path / "m", 10)
    assert not (tmp_path / "m").exists(), "what it says of its size is enough"


def test_uploaded_parameters_and_bytes_are_counted():
    with serve(Script((200, {}, b""))) as url, connect(url) as connection:
        FederationApi(connection).session(b"s" * 32, "decoder").put_chunk("decoder", 0, bytes(400), 100)
        traffic = connection.meter.take()
    assert (traffic.parameters_up, traffic.payload_up) == (100, 400)
    assert traffic.bytes_up > 400


@pytest.mark.parametrize(
    "options",
    [
        {"ca_bundle": "missing.pem"},
        {"client_certificate": "missing.pem"},
        {"proxy": "nonsense"},
    ],
)
def test_a_way_that_cannot_be_taken_is_refused_at_once(options):
    with pytest.raises(ConfigError):
        Connection("https://a.example", Identity.generate("a"), "a", NetworkOptions(**options))


@pytest.mark.parametrize(
    ("headers", "body"), [({"Content-Encoding": "gzip"}, gzip.compress(bytes(10**6))), ({}, b" " * 2 * 10**6)]
)
def test_a_reply_that_would_fill_the_memory_is_refused(headers, body):
    script = Script((200, headers, body))
    with (
        serve(script) as url,
        connect(url) as connection,
        pytest.raises(TransportError, match=r"more than the \d+ bytes it can have"),
    ):
        FederationApi(connection).roster()
    assert script.requests[0][2]["Accept-Encoding"] == "identity"
    with serve(Script((503, headers, body), roster_reply())) as url, connect(url) as connection:
        assert FederationApi(connection).roster() == ROSTER  # a proxy's error page is waited out


@pytest.mark.parametrize("server_time", [1e300, -1.0, float("nan"), float("inf")])
def test_a_senseless_time_is_no_correction(server_time):
    script = Script(problem(401, "clock-skew", server_time=server_time))
    with serve(script) as url, connect(url) as connection, pytest.raises(ClockError):
        FederationApi(connection).roster()


def test_https_where_only_http_is_served_is_said_at_once():
    told = pytest.raises(TransportError, match=r"does not speak TLS.*http://127.0.0.1")
    with serve(Script(roster_reply())) as url, connect(url.replace("http", "https")) as connection, told:
        FederationApi(connection).roster()


def test_a_redirect_is_not_followed():
    script = Script((307, {"Location": "http://127.0.0.1:9/v1/roster"}, b""))
    with serve(script) as url, connect(url) as connection, pytest.raises(ProblemError, match="answered 307"):
        FederationApi(connection).roster()
