"""The HTTP server process."""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
import signal
import socket
import ssl
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from fedddpm_aggregator.app import create_app
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.http.guard import MAX_HEADER_BYTES, MAX_TARGET
from fedddpm_aggregator.server.connections import limited, limits_of
from fedddpm_aggregator.server.metrics_port import metrics_server
from fedddpm_aggregator.server.shutdown import GracefulServer
from fedddpm_aggregator.server.tls import Certificate
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.settings import Settings

_OTHER_FILES = 256  # database, blobs, logs


class _Server(GracefulServer):
    def __init__(
        self, config: uvicorn.Config, drain: Callable[[], None], delay_s: float, certificate: Certificate | None
    ) -> None:
        super().__init__(config, drain, delay_s)
        self._certificate = certificate
        self._renewing: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._certificate is not None and self.config.ssl is not None:
            self._renewing = asyncio.create_task(self._certificate.watch(self.config.ssl))
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            scheme = "https" if self.config.is_ssl else "http"
            print(f"fedddpm-aggregator listening on {scheme}://{host}:{port}", flush=True)


def serve_forever(settings: Settings, ctx: Context) -> None:
    """Serve until SIGINT or SIGTERM; OperatorError if the address cannot be used."""
    app = create_app(settings, ctx)
    certificate = _certificate(settings)
    _allow_connections(settings.max_connections)
    config = server_config(app, settings)
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)

    def drain() -> None:
        ctx.pulse.drain(settings.drain_delay_s + settings.shutdown_grace_s)
        ctx.metrics.draining.set(1)
        app.state.watch.release()

    with (
        metrics_server(settings.metrics_host, settings.metrics_port, ctx.metrics.registry, settings.names_of_metrics),
        _bind(settings.host, settings.port) as listener,
    ):
        _Server(config, drain, settings.drain_delay_s, certificate).run(sockets=[listener])


def server_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves: with limited connections, and forwarded addresses from trusted proxies only."""
    return uvicorn.Config(
        app,
        http=limited(limits_of(settings)),
        ws="none",
        h11_max_incomplete_event_size=MAX_HEADER_BYTES + MAX_TARGET,
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=settings.proxies,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_s),
    )


def _certificate(settings: Settings) -> Certificate | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    certificate = Certificate(settings.tls_cert, settings.tls_key)
    certificate.check()
    return certificate


def _allow_connections(most: int) -> None:
    """Let this process open as many files as it may have connections, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most_allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_allowed, hard))


def _leave(_number: int, _frame: FrameType | None) -> None:
    """The HTTP server has shut down and raises the signal again: go out through the open contexts."""
    raise SystemExit(0)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(family, kind, proto))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            undo.pop_all()
            return listener
    except OSError as error:
        raise OperatorError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
