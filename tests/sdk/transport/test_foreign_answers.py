"""Whatever the aggregator, or a proxy, answers: it is taken and shown clean, or refused in a message."""

import contextlib
import inspect
import io
import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.sdk.support.answers import ESCAPES, GOOD, PROBLEM, SESSION, answering, response

from fedddpm.cli.logs import JsonFormatter, TextFormatter
from fedddpm.cli.status import status_rows
from fedddpm.config import NetworkOptions
from fedddpm.errors import FedDDPMError, TransportError
from fedddpm.identity import Identity
from fedddpm.monitoring.reporter import TerminalReporter
from fedddpm.monitoring.terminal import PlainConsole
from fedddpm.rounds.announcements import Announcements
from fedddpm.state.folder import StateFolder
from fedddpm.transport.connection import Connection
from fedddpm.transport.endpoints import FederationApi, SessionApi
from fedddpm_protocol.wire.api import RunState
from fedddpm_protocol.wire.messages import Accusation, Confirmation, Deal, Join, Shares, Unmask, UploadManifest

MIB = 2**20


def arguments(folder):
    """What each method of the interface is called with."""
    confirmation = Confirmation(id="a", signature=bytes(64))
    return {
        "roster": (),
        "state": (0, 0),
        "results": ("run-1", 0),
        "download_model": (bytes(32), folder / "m", 100),
        "download_opened": ("run-1", 0, "decoder", folder / "o", 100),
        "join": (Join(body=b"x", signature=bytes(64)),),
        "cohort": (),
        "post_shares": (Shares(items=(), deal=Deal(body=b"x", signature=bytes(64))),),
        "accuse": (Accusation(id="a", body=b"x", signature=bytes(64)),),
        "evidence": ("0" * 64,),
        "share_inbox": (),
        "put_chunk": ("decoder", 0, b"x", 1),
        "upload_status": (),
        "complete_upload": (UploadManifest(chunks={}),),
        "survivors": (),
        "confirm": (confirmation,),
        "confirmations": (),
        "unmask": (Unmask(id="a", body=b"x", signature=bytes(64)),),
        "unmasks": (),
        "upload_digests": ("a",),
        "masked_chunk": ("a", "decoder", 0, 100),
    }


def methods(kind):
    return [name for name, one in vars(kind).items() if inspect.isfunction(one) and not name.startswith("_")]


CALLS = [(FederationApi, name) for name in methods(FederationApi) if name != "session"]
CALLS += [(SessionApi, name) for name in methods(SessionApi)]

numbers = st.one_of(
    st.sampled_from([sign * (2**power + more) for sign in (1, -1) for power in (31, 63, 64, 200) for more in (-1, 0)]),
    st.floats(),
)
texts = st.one_of(
    st.just(ESCAPES),
    st.text(max_size=30),
    st.sampled_from(["\x1b[31m", "x" * 5000, "9" * 400, "NaN", "1e999", "a\nb", "\x00", "\u2028"]),
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=5,
)
RAW = {
    "nothing": b"",
    "deep lists": b"[" * 50_000,
    "deep objects": b'{"a":' * 50_000,
    "a deep field": b'{"reason":' + b"[" * 50_000,
    "digits": b'{"version":' + b"9" * 10_000 + b"}",
    "no UTF-8": b'{"reason":"\xff\xfe"}',
    "half a character": b'{"reason":"\\ud800"}',
    "a page": b"<html>\x1b[2J</html>",
    "many fields": b"{" + b",".join(b'"a%d":1' % number for number in range(30_000)) + b"}",
}
HEADS = (
    b"Retry-After: " + b"9" * 5000,
    b"Retry-After: \x1b[2J",
    b"Retry-After: -1",
    "Retry-After: \u0663".encode(),
    b"Content-Length: " + b"9" * 5000,
    b"Content-Length: 99999999999999999999",
    b"Content-Length: -1",
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Transfer-Encoding: chunked",
    b"Content-Encoding: gzip",
    b"Location: http://[\x1b",
    b"Location: //\xff:99999999/",
    b"Set-Cookie: a=b; Max-Age=" + b"9" * 5000 + b"; Expires=\x1b",
    b"Content-Type: application/problem+json; charset=\x1b[2J",
    b"Content-Range: bytes " + b"9" * 5000,
    b"X: " + b"y" * 200_000,
)
STATUSES = (
    b"200 OK",
    b"200 \x1b[2J",
    b"206 Partial",
    b"204 None",
    b"299 Odd",
    b"307 Away",
    b"401 No",
    b"404 No",
    b"409 No",
    b"999 Odd",
    b"12345 X",
    b"abc",
)


def changed(value, draw):
    """A reply with one of its values, at any depth, replaced."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        name = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 9)):
            return {**value, draw(texts): draw(anything)}
        return {**value, name: changed(value[name], draw)}
    if isinstance(value, list) and value and draw(st.booleans()):
        return [changed(value[0], draw), *value[1:]]
    return draw(anything)


def answer(name, draw):
    if draw(st.booleans()):
        example = PROBLEM if draw(st.integers(0, 2)) == 0 else GOOD.get(name, PROBLEM)
        body = json.dumps(changed(example, draw)).encode("utf-8", "surrogatepass")
    else:
        body = RAW[draw(st.sampled_from(sorted(RAW)))]
    heads = [HEADS[index] for index in draw(st.lists(st.integers(0, len(HEADS) - 1), max_size=2))]
    statuses = STATUSES if draw(st.booleans()) else STATUSES[:1]
    return response(body, draw(st.sampled_from(statuses)), *heads)


def show(reply, reporter, state):
    """Everything that is said of a state of the run."""
    if isinstance(reply, RunState):
        Announcements(reporter, state).waits(reply)
        for name, value in status_rows(state.path, reply):
            reporter.show(f"{name} {value}")


@pytest.fixture
def told():
    """The log as text and as JSON, and the screen."""
    screen, lines = io.StringIO(), []

    class Lines(logging.Handler):
        def emit(self, record):
            lines.extend((TextFormatter().format(record), JsonFormatter().format(record)))

    handler, log = Lines(), logging.getLogger("fedddpm")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield screen, lines, TerminalReporter(PlainConsole(file=screen, width=10_000))
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


@pytest.mark.parametrize(("kind", "name"), CALLS, ids=[name for _, name in CALLS])
def test_no_answer_ends_in_a_trace(kind, name, tmp_path, told):
    screen, lines, reporter = told
    call = arguments(tmp_path)[name]
    options = NetworkOptions(patience_s=0)
    with (
        answering() as (url, answers),
        StateFolder(tmp_path / "state", bytes(32), "a") as state,
        Connection(
            url, Identity.generate("a"), "a", options, on_outage=reporter.outage, on_warning=reporter.warning
        ) as connection,
    ):
        transport = FederationApi(connection)
        place = transport if kind is FederationApi else transport.session(bytes(32), "decoder")
        answers[0] = response(json.dumps(GOOD.get(name, {})).encode())
        getattr(place, name)(*call)  # as it should be

        @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
        @given(st.data())
        def hostile(data):
            answers[0] = answer(name, data.draw)
            try:
                show(getattr(place, name)(*call), reporter, state)
            except FedDDPMError as error:
                lines.append(str(error))
            for line in (*lines, *screen.getvalue().split("\n")):
                assert line.isprintable(), repr(line[:300])
                assert len(line) < 20_000
            lines.clear()
            screen.seek(0)
            screen.truncate()

        hostile()


def test_words_of_the_aggregator_are_no_instructions(told, tmp_path):
    screen, lines, reporter = told
    dirty = {
        **GOOD["state"],
        "status": "stalled",
        "reason": ESCAPES,
        "sessions": {"decoder": {**SESSION, "reason": ESCAPES}},
    }
    with contextlib.ExitStack() as stack:
        url, answers = stack.enter_context(answering())
        state = stack.enter_context(StateFolder(tmp_path / "s", bytes(32), "a"))
        with Connection(url, Identity.generate("a"), "a", NetworkOptions(patience_s=0)) as connection:
            answers[0] = response(json.dumps(dirty).encode())
            found = FederationApi(connection).state(0, 0)
            show(found, reporter, state)
            for detail in (ESCAPES, ESCAPES * 100):
                body = json.dumps({**PROBLEM, "detail": detail}).encode()
                answers[0] = response(body, b"409 Conflict")
                with pytest.raises(TransportError) as refusal:
                    FederationApi(connection).roster()
                assert str(refusal.value).isprintable()
                assert "[bold]x[/bold]" in str(refusal.value), "no markup is interpreted"
                assert len(str(refusal.value)) < 4100
    assert "\\x1b[2J" in screen.getvalue()
    assert "[bold]x[/bold]" in screen.getvalue()
    assert "Warning: forged" not in [line[20:] for line in lines]
    assert all(line.isprintable() for line in (*lines, *screen.getvalue().split("\n")))
    assert all(json.loads(line)["message"].isprintable() for line in lines[1::2])
