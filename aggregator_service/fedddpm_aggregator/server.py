"""The HTTP server process."""

from __future__ import annotations

import contextlib
import math
import signal
import socket
import ssl
from pathlib import Path
from types import FrameType

import uvicorn

from fedddpm_aggregator.app import create_app
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.graceful import GracefulServer
from fedddpm_aggregator.metrics_server import metrics_server
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.settings import Settings


class _Server(GracefulServer):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            scheme = "https" if self.config.is_ssl else "http"
            print(f"fedddpm-aggregator listening on {scheme}://{host}:{port}", flush=True)


def serve_forever(settings: Settings, ctx: Context) -> None:
    """Serve until SIGINT or SIGTERM; OperatorError if the address cannot be used."""
    app = create_app(settings, ctx)
    config = uvicorn.Config(
        app,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_s),
    )
    _load(config)
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)

    def drain() -> None:
        ctx.pulse.drain(settings.drain_delay_s + settings.shutdown_grace_s)
        ctx.metrics.draining.set(1)
        app.state.watch.release()

    with (
        metrics_server(settings.metrics_host, settings.metrics_port, ctx.metrics.registry),
        _bind(settings.host, settings.port) as listener,
    ):
        _Server(config, drain, settings.drain_delay_s).run(sockets=[listener])


def _load(config: uvicorn.Config) -> None:
    """Read the TLS files now: the error of the ssl module names no file."""
    for option, path in (("--tls-cert", config.ssl_certfile), ("--tls-key", config.ssl_keyfile)):
        try:
            if path is not None:
                Path(path).open("rb").close()
        except OSError as error:
            raise OperatorError(f"{option} {path} cannot be read: {error.strerror}") from error
    try:
        config.load()
    except ssl.SSLError as error:
        raise OperatorError(
            f"{config.ssl_certfile} and {config.ssl_keyfile} are no certificate chain and its private key in PEM "
            f"({error.reason or error})"
        ) from error


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
