"""``/metrics`` for Prometheus and ``/healthz`` for whoever restarts what hangs, over plain HTTP.

Nobody is asked who he is: it listens on the loopback address unless told otherwise.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from fedddpm.config import MetricsOptions
from fedddpm.errors import ConfigError
from fedddpm.vitals import Activity, LiveVitals

_LOG = logging.getLogger("fedddpm")
_PLAIN = ("Content-Type", "text/plain; charset=utf-8")
_SLOW_S = 10.0  # a client that says nothing for so long is given up
App = Callable[..., Iterable[bytes]]  # WSGI, PEP 3333


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without the look-up of the host's name, which hangs where there is no name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = _SLOW_S

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
        server.set_app(_app(vitals, options.silence_s))
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


def _app(vitals: LiveVitals, silence_s: float) -> App:
    try:
        from prometheus_client import make_wsgi_app

        from fedddpm.metrics import registry_of
    except ImportError as error:
        raise ConfigError(
            f"metrics need a package that is not installed ({error.name})", "Run: pip install 'fedddpm-sdk[metrics]'"
        ) from error
    metrics: App = make_wsgi_app(registry_of(vitals))

    def app(environ: dict[str, object], start_response: Callable[..., object]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, text = "405 Method Not Allowed", "read only\n"
        elif environ["PATH_INFO"] == "/metrics":
            return metrics(environ, start_response)
        elif environ["PATH_INFO"] == "/healthz":
            status, text = health(vitals, silence_s)
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
