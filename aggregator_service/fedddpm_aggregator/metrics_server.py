"""Metrics on a port of their own, so that the port of the institutions need not show them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from fedddpm_aggregator.errors import OperatorError

log = logging.getLogger(__name__)


@contextmanager
def metrics_server(host: str, port: int | None, registry: CollectorRegistry) -> Iterator[int | None]:
    """Serve ``registry`` over plain HTTP while inside; yields the port, None (and serves nothing) without one.

    Raises OperatorError if the port cannot be used.
    """
    if port is None:
        yield None
        return
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise OperatorError(
            f"cannot serve metrics on {host}:{port}: {error.strerror}; choose another FEDDDPM_AGGREGATOR_METRICS_PORT"
        ) from error
    log.info("metrics", extra={"fields": {"host": host, "port": server.server_port}})
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
