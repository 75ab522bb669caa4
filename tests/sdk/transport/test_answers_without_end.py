"""How much of an answer is read, and what that costs in memory."""

import contextlib
import json
import subprocess
import sys

import pytest
from tests.sdk.support.answers import GOOD, answering, response

from fedddpm.config import NetworkOptions
from fedddpm.errors import TransportError
from fedddpm.identity import Identity
from fedddpm.transport.connection import Connection
from fedddpm.transport.endpoints import FederationApi
from fedddpm_protocol.untrusted.bounds import bound_of
from fedddpm_protocol.wire.api import RunState
from fedddpm_protocol.wire.messages import SignedDocument

READ = """
import re, sys
from pathlib import Path
from fedddpm.config import NetworkOptions
from fedddpm.transport.connection import Connection
from fedddpm.errors import TransportError
from fedddpm.identity import Identity
from fedddpm.transport.endpoints import FederationApi
def peak_kib():
    return int(re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
with Connection(sys.argv[1], Identity.generate("a"), "a", NetworkOptions(patience_s=0)) as connection:
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of the imports
    before = peak_kib()
    try:
        getattr(FederationApi(connection), sys.argv[2])(*eval(sys.argv[3]))
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
                    FederationApi(connection).download_opened("r", 0, "p", tmp_path / "m", 10)
            answers[0] = response(
                b"%x\r\n%b\r\n0\r\n\r\n" % (1000, bytes(1000)), b"200 OK", b"Transfer-Encoding: chunked"
            )
            with pytest.raises(TransportError, match="more than the 80 bytes"):
                FederationApi(connection).download_opened("r", 0, "p", tmp_path / "m", 10)
