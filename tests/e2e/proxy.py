"""A proxy in front of the real aggregator that can watch, hold or alter single exchanges."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

import httpx

Change = Callable[[bytes], bytes]
_HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


@dataclass
class Exchange:
    """One request and its reply."""

    method: str
    path: str
    body: bytes
    status: int = 0
    reply: bytes = b""


@dataclass
class Hold:
    """A place at which an exchange is kept waiting."""

    pattern: re.Pattern[str]
    after_reply: bool  # the aggregator has answered, the institution never hears it
    skip: int
    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def wait(self, timeout_s: float = 90) -> None:
        """Until an exchange waits here."""
        assert self.reached.wait(timeout_s), f"waited {timeout_s:.0f} s in vain for {self.pattern.pattern}"


class Proxy:
    """Forwards everything unchanged, Host header included, so that signatures hold; a context manager."""

    def __init__(self, upstream: str) -> None:
        self.seen: list[Exchange] = []
        self._changes: list[tuple[re.Pattern[str], Change]] = []
        self._holds: list[Hold] = []
        self._http = httpx.Client(base_url=upstream, timeout=60, trust_env=False)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        """Where the institution connects to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hold in self._holds:
            hold.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._http.close()

    def hold(self, pattern: str, *, after_reply: bool = False, skip: int = 0) -> Hold:
        """Keep the first exchange whose ``METHOD path`` matches (after ``skip`` others) waiting until told to go on."""
        hold = Hold(re.compile(pattern), after_reply, skip)
        self._holds.append(hold)
        return hold

    def alter(self, pattern: str, change: Change) -> None:
        """Change the body of every good reply to ``METHOD path`` that matches."""
        self._changes.append((re.compile(pattern), change))

    def requests(self, pattern: str) -> list[Exchange]:
        """What went through so far and matches."""
        return [exchange for exchange in self.seen if re.search(pattern, f"{exchange.method} {exchange.path}")]

    def _exchange(self, method: str, path: str, headers: dict[str, str], body: bytes) -> httpx.Response | None:
        exchange, name = Exchange(method, path, body), f"{method} {path}"
        self.seen.append(exchange)
        self._wait(name, after_reply=False)
        try:
            response = self._http.request(method, path, headers=headers, content=body)
        except (httpx.TransportError, RuntimeError):  # away, or the test is over and the client closed
            return None
        exchange.status, exchange.reply = response.status_code, response.content
        self._wait(name, after_reply=True)
        return response

    def _wait(self, name: str, *, after_reply: bool) -> None:
        for hold in self._holds:
            if hold.after_reply == after_reply and not hold.reached.is_set() and hold.pattern.search(name):
                hold.skip -= 1
                if hold.skip < 0:
                    hold.reached.set()
                    hold.go_on.wait(120)

    def _altered(self, name: str, body: bytes) -> bytes:
        for pattern, change in self._changes:
            if pattern.search(name):
                body = change(body)
        return body

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler's own self stands inside
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
                response = proxy._exchange(self.command, self.path, headers, body)
                name = f"{self.command} {self.path}"
                try:
                    if response is None:
                        self.send_error(502)
                        return
                    content = response.content
                    if response.is_success:
                        content = proxy._altered(name, content)
                    self.send_response(response.status_code)
                    for header, value in response.headers.items():
                        if header not in _HOP | {"content-encoding"}:
                            self.send_header(header, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    self.close_connection = True  # the institution was killed meanwhile

            do_GET = do_POST = do_PUT = answer  # noqa: N815 - names that the base class calls

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler
