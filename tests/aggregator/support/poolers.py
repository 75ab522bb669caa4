"""A pooler in front of PostgreSQL that drops what clients say in ``options``, as PgBouncer can be told to."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

_PROTOCOL_3 = 196608  # any other first message asks for encryption


def _without_options(body: bytes) -> bytes:
    parts = body[4:].rstrip(b"\0").split(b"\0")
    kept = [(name, value) for name, value in zip(parts[::2], parts[1::2], strict=True) if name != b"options"]
    return body[:4] + b"".join(part + b"\0" for pair in kept for part in pair) + b"\0"


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


class _Client(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        client: socket.socket = self.request
        while True:
            size = struct.unpack("!I", client.recv(4, socket.MSG_WAITALL))[0]
            body = client.recv(size - 4, socket.MSG_WAITALL)
            if struct.unpack("!I", body[:4])[0] == _PROTOCOL_3:
                break
            client.sendall(b"N")
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(str(self.server.behind))  # type: ignore[attr-defined]
            body = _without_options(body)
            server.sendall(struct.pack("!I", len(body) + 4) + body)
            back = threading.Thread(target=_pump, args=(server, client))
            back.start()
            _pump(client, server)
            back.join()


class _Pooler(socketserver.ThreadingTCPServer):
    daemon_threads = True
    behind: Path


@contextlib.contextmanager
def dropping_options(folder: Path) -> Iterator[int]:
    """The port of a pooler in front of the PostgreSQL whose socket is in ``folder``."""
    with _Pooler(("127.0.0.1", 0), _Client) as pooler:
        pooler.behind = folder / ".s.PGSQL.5432"
        thread = threading.Thread(target=pooler.serve_forever)
        thread.start()
        try:
            yield pooler.server_address[1]
        finally:
            pooler.shutdown()
            thread.join()
