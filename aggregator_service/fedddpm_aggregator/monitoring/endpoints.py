"""/healthz, /readyz and /metrics: for orchestrators, not for institutions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fedddpm_aggregator.errors import MisdirectedError
from fedddpm_aggregator.monitoring.health import Health
from fedddpm_protocol.untrusted.host_names import may_be_asked_as

UNKNOWN_NAME = "ask by address, or name this host in FEDDDPM_AGGREGATOR_METRICS_NAMES"
public = APIRouter(tags=["health"])
measured = APIRouter(tags=["health"])
_UNHEALTHY: dict[int | str, dict[str, object]] = {503: {"description": "which check failed"}}


def _health(request: Request) -> Health:
    health: Health = request.app.state.health
    return health


@public.get("/healthz", responses=_UNHEALTHY)
async def healthz(request: Request) -> Response:
    """Whether the process and its threads live."""
    return await _health(request).alive()


@public.get("/readyz", responses=_UNHEALTHY)
async def readyz(request: Request) -> Response:
    """Whether the database answers with a usable schema, vectors can be stored, and no shutdown has begun."""
    return await _health(request).ready()


@measured.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format, for who asks under a name of this server's or by address."""
    if not may_be_asked_as(request.headers.get("host"), request.app.state.metrics_names):
        raise MisdirectedError(UNKNOWN_NAME)
    return await _health(request).exposition()
