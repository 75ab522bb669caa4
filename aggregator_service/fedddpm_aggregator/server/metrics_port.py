"""Metrics on a port of their own, so that the port of the institutions need not show them.

Nobody is asked who he is there, but no name is answered to that the server does not know (see
``fedddpm_protocol.untrusted.host_names``).
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.monitoring.endpoints import UNKNOWN_NAME
from fedddpm_protocol.untrusted.host_names import may_be_asked_as

log = logging.getLogger(__name__)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """A line for each scrape helps nobody."""


@contextmanager
def metrics_server(
    host: str, port: int | None, registry: CollectorRegistry, names: Collection[str] = ()
) -> Iterator[int | None]:
    """Serve ``registry`` over plain HTTP while inside; yields the port, None (and serves nothing) without one.

    It answers to addresses, ``localhost`` and ``names``. Raises OperatorError if the port cannot be used.
    """
    if port is None:
        yield None
        return
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        kind = type("_Server", (ThreadingWSGIServer,), {"address_family": family})
        server: ThreadingWSGIServer = kind(address[:2], _Handler)
    except OSError as error:
        raise OperatorError(
            f"cannot serve metrics on {host}:{port}: {error.strerror}; choose another FEDDDPM_AGGREGATOR_METRICS_PORT"
        ) from error
    server.set_app(_known_names_only(make_wsgi_app(registry), names))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    log.info("metrics", extra={"fields": {"host": host, "port": server.server_port}})
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _known_names_only(app: Callable[..., Iterable[bytes]], names: Collection[str]) -> Callable[..., Iterable[bytes]]:
    def checked(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        if may_be_asked_as(environ.get("HTTP_HOST"), names):
            return app(environ, start_response)
        start_response("421 Misdirected Request", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{UNKNOWN_NAME}\n".encode()]

    return checked
