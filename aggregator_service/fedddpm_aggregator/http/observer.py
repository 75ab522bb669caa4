"""The outermost layer of the application: every request gets an id, is counted, and leaves one line in the log.

It counts the bytes of bodies as others read them, and reads none itself.
"""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.telemetry.counters import Metrics
from fedddpm_aggregator.telemetry.logs import noting
from fedddpm_aggregator.telemetry.tracer import Tracer

log = logging.getLogger(__name__)
REQUEST_ID = b"x-request-id"
QUIET_ROUTES = frozenset({"/healthz", "/readyz", "/metrics"})
NO_ROUTE = "none"  # the label of a path that no route has
CLIENT_GONE = 499  # the client went away before an answer
_ACCEPTABLE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Observer:
    """ASGI middleware; the metrics are those of the application's context."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        ctx: Context = scope["app"].state.context
        request = _Observed(_request_id(scope), receive, send, ctx.tracer)
        with noting(request_id=request.id.decode()) as fields, ctx.metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, request.receive, request.send)
            except BaseException:
                request.status = request.status or 500
                raise
            finally:
                _record(ctx.metrics, scope, request, fields)


class _Observed:
    """One request as it passes."""

    def __init__(self, request_id: bytes, receive: Receive, send: Send, tracer: Tracer) -> None:
        self.id, self._receive, self._send, self._tracer = request_id, receive, send, tracer
        self.started = time.perf_counter()
        self.status = self.bytes_in = self.bytes_out = 0
        self.streams = False  # an answer that lasts, such as server-sent events

    async def receive(self) -> Message:
        message = await self._receive()
        self.bytes_in += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._tracer.annotate()  # now: a span ends with its response
            headers = list(message.get("headers", ()))
            self.streams = any(name == b"content-type" and b"event-stream" in value for name, value in headers)
            message = {**message, "headers": [*headers, (REQUEST_ID, self.id)]}
        else:
            self.bytes_out += len(message.get("body", b""))
        await self._send(message)


def _record(metrics: Metrics, scope: Scope, request: _Observed, fields: dict[str, object]) -> None:
    seconds = time.perf_counter() - request.started
    method, route, status = scope["method"], _route(scope), request.status or CLIENT_GONE
    waited = "long_poll" in fields or request.streams
    metrics.request(method, route, status, None if waited else seconds)
    metrics.body_bytes(route, request.bytes_in, request.bytes_out)
    if "problem" in fields:
        metrics.problem(str(fields["problem"]))
    level = logging.DEBUG if waited or route in QUIET_ROUTES else logging.INFO
    if log.isEnabledFor(level):
        line = {"method": method[:16], "route": route, "status": status, "ms": round(seconds * 1000, 3)}
        line |= {"bytes_in": request.bytes_in, "bytes_out": request.bytes_out}
        log.log(level, "request", extra={"fields": line})


def _route(scope: Scope) -> str:
    """The route's template; a mounted folder's files count as one."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else NO_ROUTE


def _request_id(scope: Scope) -> bytes:
    given = [value for name, value in scope["headers"] if name == REQUEST_ID]
    if len(given) == 1 and _ACCEPTABLE_ID.fullmatch(given[0]):
        return bytes(given[0])
    return secrets.token_hex(8).encode()
