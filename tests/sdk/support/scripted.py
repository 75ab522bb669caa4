"""A real server that misbehaves by script, and the connection to it."""

import contextlib
import json
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fedddpm.config import NetworkOptions
from fedddpm.identity import Identity
from fedddpm.transport.connection import Connection
from fedddpm_protocol.wire.api import PROBLEM_TYPE
from fedddpm_protocol.wire.messages import SignedDocument

ROSTER = SignedDocument(body=b"roster", signature=bytes(64))
CONTENT = bytes(range(256)) * 4000


def problem(status, code, **more):
    body = {"type": PROBLEM_TYPE + code, "title": code, "status": status, "detail": f"because of {code}", "code": code}
    return status, {"Content-Type": "application/problem+json"}, json.dumps({**body, **more}).encode()


def roster_reply():
    return 200, {"Content-Type": "application/json"}, ROSTER.model_dump_json().encode()


@dataclass
class Limited:
    """A gateway that ends answers to long polls after so long.

    It does so by a status, by an answer, by "cut off" in the body, or by "late hang up".
    """

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
            if not gateway.always and wait < 100:  # short enough, however busy this machine is
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


def connect(url, patience_s=5.0, **callbacks):
    identity = Identity.generate("hospital-a")
    return Connection(url, identity, "hospital-a", NetworkOptions(patience_s=patience_s), **callbacks)
