"""Connections that give up on clients that are too slow or too many.

uvicorn waits for ever for the head and the body of a request. Here a head has some seconds to come whole, a body must
come at a least rate, a response must be read, and connections are counted, together and by address.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedddpm_aggregator.http.guard import SECURE_HEADERS
from fedddpm_aggregator.http.problems import problem
from fedddpm_aggregator.http.rate_limits import address_key
from fedddpm_aggregator.settings import Settings

log = logging.getLogger(__name__)
_MOST_REST = 8 * 2**20  # bytes that are thrown away of a body that was refused, so that its sender reads why
_LOOK_S = 1.0  # between two looks at a body's rate


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may take."""

    most: int = 4000
    most_per_address: int = 2000
    head_s: float = 15.0  # for the head of a request, whole
    body_s: float = 30.0  # for a body, and more as it comes:
    body_bytes_per_s: int = 2048
    response_s: float = 60.0  # in which nothing of a response is read
    is_proxy: Callable[[str], bool] = lambda _address: False  # many clients share its address


def limits_of(settings: Settings) -> ConnectionLimits:
    """The limits that an operator has set."""
    networks = [ip_network(item) for item in settings.proxies]

    def is_proxy(address: str) -> bool:
        return any(ip_address(address) in network for network in networks)

    return ConnectionLimits(
        most=settings.max_connections,
        most_per_address=settings.max_connections_per_address,
        head_s=settings.head_s,
        body_s=settings.body_s,
        body_bytes_per_s=settings.min_body_bytes_per_s,
        response_s=settings.response_s,
        is_proxy=is_proxy,
    )


class LimitedConnection(H11Protocol):
    """uvicorn's connection with limits; see :func:`limited`."""

    limits = ConnectionLimits()
    open_by_address: ClassVar[Counter[str]] = Counter()

    _address: str | None = None
    _awaited: str | None = None  # "head" or "body": what must come in time
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _awaited_s = 0.0
    _received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection; refuse it if there are too many."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        self._address = address_key(address)
        self.open_by_address[self._address] += 1
        mine = 0 if self.limits.is_proxy(address) else self.open_by_address[self._address]
        if len(self.connections) > self.limits.most or mine > self.limits.most_per_address:
            self._refuse(503, "too-many-connections", "too many connections are open; try again later")
        else:
            self._await("head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._await(None)
        self._stop_write_timer()
        if self._address is not None:
            self.open_by_address[self._address] -= 1
            if not self.open_by_address[self._address]:
                del self.open_by_address[self._address]
            self._address = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; what is not asked for by the application stays with the kernel."""
        self._received += len(data)
        super().data_received(data)
        self._look_at_request()
        if self._awaited == "body" and self.cycle.response_complete:
            if self._received > _MOST_REST:
                self.transport.close()
        elif self._awaited == "body" and self.cycle.body:
            self.flow.pause_reading()  # until the application asks for more

    def on_response_complete(self) -> None:
        """Look whether the next request has begun to come."""
        super().on_response_complete()
        self._look_at_request()

    def pause_writing(self) -> None:
        """The client does not read: give it some time."""
        super().pause_writing()
        self._stop_write_timer()
        self._write_timer = self.loop.call_later(self.limits.response_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read on."""
        self._stop_write_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """A request that is no HTTP, or has a head that is too large."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        code = "headers-too-large" if status == 431 else "bad-request"
        self._refuse(status, code, f"{msg.rstrip('.')}: {sys.exception()}")

    def _look_at_request(self) -> None:
        state = self.conn.their_state
        if state is h11.IDLE and (self.conn.trailing_data[0] or self.cycle is None):
            self._await("head")
        else:
            self._await("body" if state is h11.SEND_BODY else None)

    def _await(self, what: str | None) -> None:
        if what == self._awaited:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._awaited, self._awaited_s, self._received = what, 0.0, 0
        if what == "head":
            self._timer = self.loop.call_later(self.limits.head_s, self._too_slow)
        elif what == "body":
            self._timer = self.loop.call_later(_LOOK_S, self._look_at_rate)

    def _look_at_rate(self) -> None:
        if not self.flow.read_paused:  # else it is this server that lets the client wait
            self._awaited_s += _LOOK_S
        if self._awaited_s > self.limits.body_s + self._received / self.limits.body_bytes_per_s:
            self._too_slow()
        else:
            self._timer = self.loop.call_later(_LOOK_S, self._look_at_rate)

    def _too_slow(self) -> None:
        log.warning("a client was too slow", extra={"fields": {"waited_for": self._awaited}})
        self._refuse(408, "too-slow", f"the {self._awaited} of the request did not come in time; send it anew")

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answer instead of the application, and close."""
        self._await(None)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started:
                self.transport.abort()
                return
            cycle.disconnected = True  # the application reads no body, and what it answers goes nowhere
            cycle.message_event.set()
        document = problem(status, code, detail)
        headers = [*document.raw_headers, (b"connection", b"close")]
        headers += [(name.encode(), value.encode()) for name, value in SECURE_HEADERS.items()]
        try:
            for event in (
                h11.Response(status_code=status, headers=headers, reason=b""),
                h11.Data(data=bytes(document.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            log.debug("no response can be sent any more")
        self.transport.close()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def limited(limits: ConnectionLimits) -> type[LimitedConnection]:
    """The class of connections of one server, which counts its own."""
    return type("LimitedConnection", (LimitedConnection,), {"limits": limits, "open_by_address": Counter()})
