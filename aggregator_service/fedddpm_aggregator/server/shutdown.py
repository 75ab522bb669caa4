"""Leaving without losing a request: SIGTERM, then readiness ends, then the socket closes, then the process ends."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

log = logging.getLogger(__name__)
MARGIN_S = 3.0  # after drain delay and grace, for what ends by itself


class GracefulServer(uvicorn.Server):
    """Calls ``drain`` at the first signal, closes its socket ``drain_delay_s`` later, and waits for open requests.

    A process that still hangs when delay, grace and a margin are over (a database that never answers) is ended.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None], drain_delay_s: float) -> None:
        super().__init__(config)
        self._drain, self._delay_s = drain, drain_delay_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second one ends the delay."""
        if self._draining or self._loop is None:
            super().handle_exit(sig, frame)
            return
        self._draining = True
        self._loop.call_soon_threadsafe(self._leave, sig)

    def _leave(self, sig: int) -> None:
        log.info("shutting down", extra={"fields": {"drain_delay_s": self._delay_s}})
        self._drain()
        limit_s = self._delay_s + (self.config.timeout_graceful_shutdown or 0) + MARGIN_S
        watchdog = threading.Timer(limit_s, _give_up, (limit_s,))
        watchdog.daemon = True
        watchdog.start()
        asyncio.get_running_loop().call_later(self._delay_s, super().handle_exit, sig, None)


def _give_up(limit_s: float) -> None:
    log.error("shutting down took too long", extra={"fields": {"limit_s": limit_s}})
    os._exit(1)
