"""Whatever the aggregator, or a proxy, answers: it is taken and shown clean, or refused in a message."""

import contextlib
import inspect
import io
import json
import logging
import socket
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from fedddpm.cli.app import app
from fedddpm.cli.logs import JsonFormatter, TextFormatter
from fedddpm.cli.status import status_rows
from fedddpm.config import NetworkOptions, load_config
from fedddpm.errors import ConfigError, FedDDPMError, ModelError, TransportError
from fedddpm.files.atomic import save_tensors
from fedddpm.identity import Identity, load_public_key
from fedddpm.model.model_files import read_architecture
from fedddpm.monitoring.reporter import Reporter, TerminalReporter
from fedddpm.monitoring.terminal import PlainConsole
from fedddpm.rounds.announcements import Telling
from fedddpm.state.folder import StateDir
from fedddpm.transport.connection import Connection
from fedddpm.transport.endpoints import SessionApi, Transport
from fedddpm_protocol.foreign.bounds import bound_of
from fedddpm_protocol.wire.api import PROBLEM_TYPE, RunState
from fedddpm_protocol.wire.messages import Confirmation, Join, Shares, SignedDocument, Unmask, UploadManifest

MIB = 2**20
ESCAPES = "\x1b[2J\x1b]0;forged\x07\n2026-01-01 00:00:00 Warning: forged\r\u202e\u200b[bold]x[/bold]"
B64 = {size: SignedDocument(body=bytes(size), signature=bytes(64)).model_dump(mode="json")["body"] for size in (32, 92)}
SIGNATURE = SignedDocument(body=b"x", signature=bytes(64)).model_dump(mode="json")["signature"]
DOCUMENT = {"body": "eA==", "signature": SIGNATURE}
SESSION = {"phase": "join", "cohort_size": 3, "posted": 1, "reason": "waits"}
GOOD = {
    "roster": DOCUMENT,
    "state": {
        **{
            "version": 1,
            "roster_version": 1,
            "run": "run-1",
            "method": "UDEC",
            "status": "running",
            "reason": "all well",
        },
        **{"round": 0, "rounds": 2, "attempt": 0, "spec": DOCUMENT, "sessions": {"decoder": SESSION}, "results": 0},
        **{"last_result": None, "server_time": 1.7e9},
    },
    "results": {"results": [DOCUMENT]},
    "join": {"outcome": "accepted", "newest_seq": 1},
    "cohort": {"joins": [DOCUMENT]},
    "share_inbox": {
        "items": [{"sender": "a", "recipient": "b", "sealed": B64[92], "signature": SIGNATURE}],
        "sharers": ["a"],
    },
    "upload_status": {"chunks": {"decoder": {"0": "0" * 64}}, "complete": False},
    "survivors": {"survivors": [{"id": "a", "upload_digest": B64[32]}]},
    "confirmations": {"confirmations": [{"id": "a", "signature": SIGNATURE}]},
}
PROBLEM = {
    "type": PROBLEM_TYPE + "x",
    "title": "t",
    "status": 409,
    "detail": "d",
    "code": "conflict",
    "server_time": 1.7e9,
}


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
        "post_shares": (Shares(items=()),),
        "share_inbox": (),
        "put_chunk": ("decoder", 0, b"x", 1),
        "upload_status": (),
        "complete_upload": (UploadManifest(chunks={}),),
        "survivors": (),
        "confirm": (confirmation,),
        "confirmations": (),
        "unmask": (Unmask(id="a", body=b"x", signature=bytes(64)),),
    }


def methods(kind):
    return [name for name, one in vars(kind).items() if inspect.isfunction(one) and not name.startswith("_")]


CALLS = [(Transport, name) for name in methods(Transport) if name != "session"]
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


@contextlib.contextmanager
def answering():
    """A server on a raw socket that says to every request what stands in the list."""
    answers = [b""]

    def serve(client):
        with client, contextlib.suppress(OSError):
            client.settimeout(5)
            client.recv(65536)
            client.sendall(answers[0])

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", answers
        listener.shutdown(socket.SHUT_RDWR)


def response(body, status=b"200 OK", *heads):
    lines = [b"HTTP/1.1 " + status, *heads]
    if not any(head.startswith((b"Content-Length", b"Transfer")) for head in heads):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"Connection: close", b"", body])


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
        Telling(reporter, state).waits(reply)
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
        StateDir(tmp_path / "state", bytes(32), "a") as state,
        Connection(
            url, Identity.generate("a"), "a", options, on_outage=reporter.outage, on_warning=reporter.warning
        ) as connection,
    ):
        transport = Transport(connection)
        place = transport if kind is Transport else transport.session(bytes(32), "decoder")
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
        state = stack.enter_context(StateDir(tmp_path / "s", bytes(32), "a"))
        with Connection(url, Identity.generate("a"), "a", NetworkOptions(patience_s=0)) as connection:
            answers[0] = response(json.dumps(dirty).encode())
            found = Transport(connection).state(0, 0)
            show(found, reporter, state)
            for detail in (ESCAPES, ESCAPES * 100):
                body = json.dumps({**PROBLEM, "detail": detail}).encode()
                answers[0] = response(body, b"409 Conflict")
                with pytest.raises(TransportError) as refusal:
                    Transport(connection).roster()
                assert str(refusal.value).isprintable()
                assert "[bold]x[/bold]" in str(refusal.value), "no markup is interpreted"
                assert len(str(refusal.value)) < 4100
    assert "\\x1b[2J" in screen.getvalue()
    assert "[bold]x[/bold]" in screen.getvalue()
    assert "Warning: forged" not in [line[20:] for line in lines]
    assert all(line.isprintable() for line in (*lines, *screen.getvalue().split("\n")))
    assert all(json.loads(line)["message"].isprintable() for line in lines[1::2])


def test_every_text_of_a_console_is_plain():
    from rich.table import Table

    screen = io.StringIO()
    console = PlainConsole(file=screen, force_terminal=False, width=500)
    table = Table("name", title=ESCAPES)
    table.add_row(ESCAPES)
    console.print(ESCAPES, table)
    assert all(line.isprintable() for line in screen.getvalue().split("\n"))
    assert screen.getvalue().count("[bold]x[/bold]") == 3
    assert isinstance(console, Console)


def test_a_trace_in_the_log_begins_no_line_of_its_own(capsys):
    try:
        raise ValueError("x\n2026-01-01 00:00:00 Warning: forged\x1b[2J")
    except ValueError:
        record = logging.LogRecord("fedddpm", logging.ERROR, __file__, 1, "a\nb", (), sys.exc_info())
    first, *rest = TextFormatter().format(record).split("\n")
    assert first.endswith("Error: a\\nb")
    assert all(line.startswith("  | ") and line.isprintable() for line in rest)
    record.exc_text = None
    assert "\x1b" not in json.loads(JsonFormatter().format(record))["traceback"]


# --- how much is read------------

READ = """
import re, sys
from pathlib import Path
from fedddpm.config import NetworkOptions
from fedddpm.transport.connection import Connection
from fedddpm.errors import TransportError
from fedddpm.identity import Identity
from fedddpm.transport.endpoints import Transport
def peak_kib():
    return int(re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
with Connection(sys.argv[1], Identity.generate("a"), "a", NetworkOptions(patience_s=0)) as connection:
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of the imports
    before = peak_kib()
    try:
        getattr(Transport(connection), sys.argv[2])(*eval(sys.argv[3]))
        print("taken")
    except TransportError as error:
        print(error)
    print(peak_kib() - before)
"""


@pytest.mark.parametrize(
    ("name", "call", "most_mib"), [("roster", (), 16), ("state", (0, 0), 60), ("results", ("r", 0), 160)]
)
@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("within", [True, False], ids=["within the bytes", "30 MB"])
def test_unknown_fields_without_end_cost_little_memory(name, call, most_mib, announced, within):
    kind = {"roster": SignedDocument, "state": RunState}.get(name)
    size = 30 * 10**6 if not within or kind is None else bound_of(kind).size - 1000
    head = json.dumps(GOOD[name]).encode()[:-1]
    fields = b",".join(b'"a%d":1' % number for number in range(size // 11))
    body = head + b"," + fields[: size - len(head)].rpartition(b",")[0] + b"}"
    json.loads(body)
    if announced:
        reply = response(body)
    else:
        reply = response(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), b"200 OK", b"Transfer-Encoding: chunked")
    with answering() as (url, answers):
        answers[0] = reply
        done = subprocess.run([sys.executable, "-c", READ, url, name, repr(call)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, grown_kib = done.stdout.splitlines()
    assert "more than the" in said or "did not answer with" in said
    assert int(grown_kib) < most_mib * 1024


def test_a_download_that_says_too_much_of_its_size_is_not_begun(tmp_path):
    with contextlib.ExitStack() as stack:
        url, answers = stack.enter_context(answering())
        with Connection(url, Identity.generate("a"), "a", NetworkOptions(patience_s=0)) as connection:
            for size in (b"10000000000", b"9" * 15):
                answers[0] = response(b"x" * 100, b"200 OK", b"Content-Length: " + size)
                with pytest.raises(TransportError, match="more than the"):
                    Transport(connection).download_opened("r", 0, "p", tmp_path / "m", 10)
            answers[0] = response(
                b"%x\r\n%b\r\n0\r\n\r\n" % (1000, bytes(1000)), b"200 OK", b"Transfer-Encoding: chunked"
            )
            with pytest.raises(TransportError, match="more than the 80 bytes"):
                Transport(connection).download_opened("r", 0, "p", tmp_path / "m", 10)


# --- files----------------


@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"multipliers":' * 10**5, "9" * 10**4, '{"multipliers":[[[1]]]}', "null", '"x"']
)
def test_metadata_of_a_model_file_is_read_or_refused(tmp_path, text):
    path = tmp_path / "m.safetensors"
    save_tensors(path, {"x": torch.zeros(1)}, {"fedddpm.architecture": text})
    with pytest.raises(ModelError, match="no model file"):
        read_architecture(path)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"public_key":' * 10**5, "9" * 10**4])
def test_key_files_are_read_or_refused(tmp_path, text):
    path = tmp_path / "a.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        load_public_key(path)
    with pytest.raises(ConfigError):
        Identity.load(path)


@pytest.mark.parametrize("text", ["a = " + "[" * 10**5, "a = " + "9" * 10**5, "a = '\x1b'", "a" * 10**5])
def test_settings_files_are_read_or_refused(tmp_path, text):
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="TOML") as refusal:
        load_config(path)
    assert str(refusal.value).isprintable()
    done = CliRunner().invoke(app, ["participate", "--config", str(path)])
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_a_reporter_without_a_command_writes_plain_lines_too(caplog):
    with caplog.at_level(logging.INFO, "fedddpm"):
        Reporter().notice(ESCAPES, "x", {"reason": ESCAPES})
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert record.fields["reason"].isprintable()
