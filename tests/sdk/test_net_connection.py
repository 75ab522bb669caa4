"""Patience, problem documents, resumed downloads and counted bytes, against a real server that misbehaves by script."""

import contextlib
import gzip
import hashlib
import json
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from fedddpm import connection as connection_module
from fedddpm import poll_length
from fedddpm.config import NetworkOptions
from fedddpm.connection import Connection
from fedddpm.errors import ConfigError, TransportError
from fedddpm.identity import Identity
from fedddpm.problems import ClockError, NotEnrolledError, ProblemError, UnreachableError
from fedddpm.transport import Transport
from fedddpm_protocol.api import PROBLEM_TYPE, RunState
from fedddpm_protocol.messages import SignedDocument

ROSTER = SignedDocument(body=b"roster", signature=bytes(64))
CONTENT = bytes(range(256)) * 4000


def problem(status, code, **more):
    body = {"type": PROBLEM_TYPE + code, "title": code, "status": status, "detail": f"because of {code}", "code": code}
    return status, {"Content-Type": "application/problem+json"}, json.dumps({**body, **more}).encode()


def roster_reply():
    return 200, {"Content-Type": "application/json"}, ROSTER.model_dump_json().encode()


@dataclass
class Limited:
    """A gateway that ends answers after so long: by a status or an answer, by "cut off" in the body, or "late hang up"."""

    limit_s: float
    how: str | int | tuple
    reply: tuple  # what comes through where the poll is shorter
    always: bool = False  # whether nothing comes through


class Script:
    """Answers in order; the last one is repeated.

    An answer is (status, headers, body), "hang up", "stall", "cut" or a Limited.
    """

    def __init__(self, *answers):
        self.answers, self.requests = list(answers), []

    def next(self):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextlib.contextmanager
def serve(script):
    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            length = int(self.headers.get("Content-Length", 0))
            script.requests.append((self.command, self.path, dict(self.headers.items()), self.rfile.read(length)))
            reply = script.next()
            if reply == "hang up":
                self.close_connection = True
                return
            if reply in ("cut", "whole"):
                self.content(cut=reply == "cut")
                return
            if isinstance(reply, Limited):
                reply = self.limited(reply)
                if reply is None:
                    return
            if reply == "stall":  # a head, a sign of life, and nothing more while the client listens
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b" ")
                self.connection.recv(1)
                self.close_connection = True
                return
            status, headers, body = reply
            self.send_response(status)
            for name, value in {**headers, "Content-Length": len(body)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def limited(self, gateway):
            """What comes through; None where that was nothing, or only the beginning."""
            wait = float(self.path.rpartition("wait=")[2])
            if not gateway.always and wait < gateway.limit_s:
                time.sleep(wait)
                return gateway.reply
            if gateway.how == "cut off":
                self.protocol_version = "HTTP/1.1"
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"1\r\n \r\n")
            time.sleep(gateway.limit_s)
            if isinstance(gateway.how, int):
                return gateway.how, {"Content-Type": "text/html"}, b"<html>time out</html>"
            if isinstance(gateway.how, tuple):
                return gateway.how
            self.close_connection = True
            return None

        def content(self, cut):
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            rest = CONTENT[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: len(rest) // 2] if cut else rest)
            self.close_connection = True

        do_GET = do_POST = do_PUT = answer  # noqa: N815 - names of the standard library

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(connection_module, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(connection_module, "LONGEST_DELAY_S", 0.05)


def connect(url, patience_s=5.0, **callbacks):
    identity = Identity.generate("hospital-a")
    return Connection(url, identity, "hospital-a", NetworkOptions(patience_s=patience_s), **callbacks)


def test_a_proxy_is_asked_instead():
    script = Script(roster_reply())
    with serve(script) as proxy:
        options = NetworkOptions(proxy=proxy, patience_s=0)
        identity = Identity.generate("hospital-a")
        with Connection("http://aggregator.invalid", identity, "hospital-a", options) as connection:
            assert Transport(connection).roster() == ROSTER
    assert script.requests[0][1] == "http://aggregator.invalid/v1/roster"


def test_every_request_is_signed_and_counted():
    script = Script(roster_reply())
    with serve(script) as url, connect(url) as connection:
        assert Transport(connection).roster() == ROSTER
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
        assert Transport(connection).roster() == ROSTER
    assert len(script.requests) == 4
    assert [outage is None for outage in outages] == [False, False, False, True]
    nonces = {headers["Signature-Input"] for _, _, headers, _ in script.requests}
    assert len(nonces) == 4  # a repetition is no replay


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
        transport = Transport(connection)
        assert transport.state(2, 240.0).version == 3
        assert transport.state(3, 240.0).version == 3
        assert transport.state(3, 0.1).version == 3
    assert waits(script) == pytest.approx([240.0, 0.3, 0.3, 0.1])
    assert outages == []


@pytest.mark.usefixtures("quick_limits")
@pytest.mark.parametrize("gateway", ["cut off", "late hang up", 408, 502, 504])
def test_polls_are_shorter_where_a_gateway_ends_long_answers(gateway):
    outages, script = [], Script(Limited(0.4, gateway, state_reply()))
    with serve(script) as url, connect(url, on_outage=outages.append) as connection:
        transport = Transport(connection)
        for after in (2, 2, 2):
            assert transport.state(after, 240.0).version == 3
    assert waits(script)[0] == 240.0
    assert len(script.requests) == 4, "one poll was cut, the shorter ones pass"
    assert all(0.15 <= wait < 0.4 for wait in waits(script)[1:])
    assert outages == [], "an aggregator that is well is not away"


@pytest.mark.usefixtures("quick_limits")
def test_a_longer_poll_is_tried_again_after_many_quiet_ones(monkeypatch):
    """A restart that cut a poll does not make them short for ever; a limit that stays is met more and more seldom."""
    monkeypatch.setattr(poll_length, "QUIET_POLLS", 2)
    now = [100.0]
    monkeypatch.setattr("fedddpm.poll_length.time.monotonic", lambda: now[0])
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
        assert Transport(connection).state(2, 240.0).version == 3
    assert len(script.requests) == 4
    assert [outage is None for outage in outages] == [False] * (len(outages) - 1) + [True]
    assert len(outages) == (3 if isinstance(trouble, str) else 4)


@pytest.mark.usefixtures("quick_limits")
def test_an_aggregator_whose_polls_are_always_cut_is_given_up():
    script = Script(Limited(0.25, "late hang up", (), always=True))
    with serve(script) as url, connect(url, patience_s=0.8) as connection, pytest.raises(UnreachableError):
        Transport(connection).state(2, 240.0)
    assert len(script.requests) >= 3
    assert min(waits(script)) >= 0.1


def test_what_fails_at_once_is_an_outage_and_polls_stay_long():
    outages, script = [], Script((504, {}, b"<html>away</html>"), "hang up", state_reply())
    with serve(script) as url, connect(url, on_outage=outages.append) as connection:
        assert Transport(connection).state(2, 240.0).version == 3
    assert waits(script) == [240.0] * 3
    assert [outage is None for outage in outages] == [False, False, True]


def test_patience_ends_and_says_so():
    with connect("http://127.0.0.1:9", patience_s=0.2) as connection:
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="nothing is lost"):
            Transport(connection).roster()
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
        Transport(connection).roster()
    assert len(script.requests) == 1


def test_the_clock_is_corrected_once_and_the_user_is_told():
    warnings, ahead = [], time.time() + 5000
    script = Script(problem(401, "clock-skew", server_time=ahead), roster_reply())
    with serve(script) as url, connect(url, on_warning=warnings.append) as connection:
        assert Transport(connection).roster() == ROSTER
    created = int(script.requests[1][2]["Signature-Input"].split("created=")[1].split(";")[0])
    assert created == pytest.approx(ahead, abs=5)
    assert "5000 s behind" in warnings[0] or "4999 s behind" in warnings[0]
    script = Script(problem(401, "clock-skew", server_time=ahead))
    with serve(script) as url, connect(url) as connection, pytest.raises(ClockError, match="clock"):
        Transport(connection).roster()
    assert len(script.requests) == 2


def test_a_broken_download_goes_on_where_it_stopped(tmp_path):
    script, seen = Script("cut", "cut", "whole"), []
    with serve(script) as url, connect(url) as connection:
        transport = Transport(connection)
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
        Transport(connection).download_opened("run-1", 0, "decoder", tmp_path / "m", 10)
    assert (tmp_path / "m").stat().st_size < len(CONTENT)


def test_uploaded_parameters_and_bytes_are_counted():
    with serve(Script((200, {}, b""))) as url, connect(url) as connection:
        Transport(connection).session(b"s" * 32, "decoder").put_chunk("decoder", 0, bytes(400), 100)
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
    ("headers", "body"), [({"Content-Encoding": "gzip"}, gzip.compress(bytes(10**6))), ({}, b" " * 2000)]
)
def test_a_reply_that_would_fill_the_memory_is_refused(monkeypatch, headers, body):
    monkeypatch.setattr(connection_module, "MOST_REPLY_BYTES", 1000)
    script = Script((200, headers, body))
    with serve(script) as url, connect(url) as connection, pytest.raises(TransportError, match="more than 1000 bytes"):
        Transport(connection).roster()
    assert script.requests[0][2]["Accept-Encoding"] == "identity"
    with serve(Script((503, headers, body), roster_reply())) as url, connect(url) as connection:
        assert Transport(connection).roster() == ROSTER  # a proxy's error page is waited out


@pytest.mark.parametrize("server_time", [1e300, -1.0, float("nan"), float("inf")])
def test_a_senseless_time_is_no_correction(server_time):
    script = Script(problem(401, "clock-skew", server_time=server_time))
    with serve(script) as url, connect(url) as connection, pytest.raises(ClockError):
        Transport(connection).roster()


def test_https_where_only_http_is_served_is_said_at_once():
    told = pytest.raises(TransportError, match=r"does not speak TLS.*http://127.0.0.1")
    with serve(Script(roster_reply())) as url, connect(url.replace("http", "https")) as connection, told:
        Transport(connection).roster()


def test_a_redirect_is_not_followed():
    script = Script((307, {"Location": "http://127.0.0.1:9/v1/roster"}, b""))
    with serve(script) as url, connect(url) as connection, pytest.raises(ProblemError, match="answered 307"):
        Transport(connection).roster()
