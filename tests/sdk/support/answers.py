"""Answers of an aggregator that is none: good examples of each kind, and a server that says what it is told."""

import contextlib
import socket
import threading

from fedddpm_protocol.wire.api import PROBLEM_TYPE
from fedddpm_protocol.wire.messages import SignedDocument

ESCAPES = "\x1b[2J\x1b]0;forged\x07\n2026-01-01 00:00:00 Warning: forged\r\u202e\u200b[bold]x[/bold]"
B64 = {
    size: SignedDocument(body=bytes(size), signature=bytes(64)).model_dump(mode="json")["body"] for size in (32, 156)
}
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
        "items": [{"sender": "a", "recipient": "b", "sealed": B64[156]}],
        "deals": [DOCUMENT],
        "sharers": ["a"],
    },
    "evidence": {
        **{"spec": DOCUMENT, "session": "decoder", "joins": [DOCUMENT, DOCUMENT]},
        "proof": {
            "about": "item",
            "deal": DOCUMENT,
            "sealed": B64[156],
            "accusation": {"id": "a", **DOCUMENT},
        },
    },
    "upload_status": {"chunks": {"decoder": {"0": "0" * 64}}, "complete": False},
    "survivors": {"survivors": [{"id": "a", "upload_digest": B64[32]}]},
    "confirmations": {"confirmations": [{"id": "a", "signature": SIGNATURE}]},
    "unmasks": {"unmasks": [{"id": "a", "body": B64[32], "signature": SIGNATURE}]},
    "upload_digests": {"chunks": {"decoder": [B64[32]]}},
}
PROBLEM = {
    "type": PROBLEM_TYPE + "x",
    "title": "t",
    "status": 409,
    "detail": "d",
    "code": "conflict",
    "server_time": 1.7e9,
}


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
