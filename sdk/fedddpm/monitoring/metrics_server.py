"""``/metrics`` for Prometheus and ``/healthz`` for whoever restarts what hangs, over plain HTTP.

Nobody is asked who he is: it listens on the loopback address unless told otherwise, and answers to no name that it does
not know, so that no web page reads it through a browser on this machine. Who asks slowly, or many times at
once, is hung up on: this process has other work.
"""

from __future__ import annotations

import io
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from fedddpm.config import MetricsOptions
from fedddpm.errors import ConfigError
from fedddpm.monitoring.vitals import Activity, LiveVitals
from fedddpm_protocol.untrusted.host_names import may_be_asked_as

_LOG = logging.getLogger("fedddpm")
_PLAIN = ("Content-Type", "text/plain; charset=utf-8")
MOST_AT_ONCE = 16
SLOW_S = 10.0  # for the whole of a request and its answer
App = Callable[..., Iterable[bytes]]  # WSGI, PEP 3333


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each request, of which there are few and none for long."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self._until: dict[socket.socket, float] = {}  # requests at work, and when each is given up
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, or hang up where there are too many."""
        with self._lock:
            full = len(self._until) >= MOST_AT_ONCE
            if not full:
                self._until[request] = time.monotonic() + SLOW_S
        if full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """A request is over, however it ended."""
        with self._lock:  # nobody else hangs up on a socket that is being closed
            self._until.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Several times a second: hang up on who is too slow, which wakes the thread that waits for him."""
        now = time.monotonic()
        with self._lock:
            for request, until in self._until.items():
                if now >= until:
                    with suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or was hung up on; a trace on stderr would be no line of the log."""
        _LOG.debug(f"a client of the metrics got no answer ({type(sys.exception()).__name__})")

    def server_bind(self) -> None:
        """Without the look-up of the host's name, which hangs where there is no name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    def get_stderr(self) -> io.StringIO:
        """Where wsgiref writes traces of answers that could not be sent: nowhere. Defects are logged by the app."""
        return io.StringIO()

    def log_message(self, format: str, *args: object) -> None:
        """A line for each scrape helps nobody."""


@contextmanager
def serving_metrics(options: MetricsOptions, vitals: LiveVitals) -> Iterator[int | None]:
    """Serve ``vitals`` while inside; yields the port, None (and serves nothing) where no port is wanted.

    Raises:
        ConfigError: the port cannot be used, or the extra ``[metrics]`` is not installed.
    """
    if options.port is None:
        yield None
        return
    with _listening(options.host, options.port) as server:
        server.set_app(_app(vitals, options))
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        thread.start()
        shown = f"[{options.host}]" if ":" in options.host else options.host
        text = f"metrics: http://{shown}:{server.server_port}/metrics"
        _LOG.info(text, extra={"event": "metrics", "fields": {"host": options.host, "port": server.server_port}})
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _listening(host: str, port: int) -> _Server:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        kind = type("_Server", (_Server,), {"address_family": family})
        server: _Server = kind(address[:2], _Handler)
    except OSError as error:
        raise ConfigError(
            f"metrics cannot be served on {host}:{port} ({error.strerror})",
            "Choose another --metrics-port, or another host below [metrics]",
        ) from error
    return server


def _app(vitals: LiveVitals, options: MetricsOptions) -> App:
    try:
        from prometheus_client import make_wsgi_app

        from fedddpm.monitoring.metrics import registry_of
    except ImportError as error:
        raise ConfigError(
            f"metrics need a package that is not installed ({error.name})", "Run: pip install 'fedddpm-sdk[metrics]'"
        ) from error
    metrics: App = make_wsgi_app(registry_of(vitals))

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        if not may_be_asked_as(environ.get("HTTP_HOST"), (options.host, *options.names)):
            status, text = "421 Misdirected Request", "ask by address, or name this host below [metrics] names\n"
        elif environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, text = "405 Method Not Allowed", "read only\n"
        elif environ["PATH_INFO"] == "/metrics":
            try:
                return metrics(environ, start_response)
            except Exception:  # noqa: BLE001 - logged with its trace; wsgiref would print it to stderr
                _LOG.exception("a defect of fedddpm: the metrics cannot be read", extra={"event": "defect"})
                status, text = "500 Internal Server Error", "see the log\n"
        elif environ["PATH_INFO"] == "/healthz":
            status, text = health(vitals, options.silence_s)
        else:
            status, text = "404 Not Found", "/metrics or /healthz\n"
        start_response(status, [_PLAIN])
        return [text.encode()]

    return app


def health(vitals: LiveVitals, silence_s: float) -> tuple[str, str]:
    """Status and word: whether the work gave a sign of life lately, or is still opening its images.

    An aggregator that is away is no illness: starting this process again would not bring it back.
    """
    now = vitals.read()
    if now.silent_s > silence_s and now.activity is not Activity.STARTING:
        return "503 Service Unavailable", f"no sign of life for {now.silent_s:.0f} s while {now.activity}\n"
    return "200 OK", f"{now.activity}{', the aggregator is away' if now.away else ''}\n"
