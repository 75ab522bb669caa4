"""HTTP by hand, for clients that no library would be."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx


@dataclass
class Answer:
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status
        return document


@contextlib.contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    """A connection that waits for 30 seconds at most."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=30) as connection:
        yield connection


def ended(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def next_answer(connection: socket.socket) -> Answer:
    """One whole response, on a connection that stays open."""
    received = b""
    while b"\r\n\r\n" not in received or len(answer(received).body) < int(answer(received).headers["content-length"]):
        data = connection.recv(65536)
        assert data, received
        received += data
    return answer(received)


def answer(received: bytes) -> Answer:
    """The first response in what came."""
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(first.split()[1]), headers, body[: int(headers.get("content-length", len(body)))])


def head_of(request: httpx.Request) -> bytes:
    """The head of a request that is the last of its connection."""
    lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1".encode(), b"connection: close"]
    lines += [name + b": " + value for name, value in request.headers.raw if name.lower() != b"connection"]
    return b"\r\n".join(lines) + b"\r\n\r\n"
