"""Answers that wait for news, with signs of life.

Proxies cut connections that are silent for a minute, and asking anew costs a signature, a nonce and a transaction. So
whoever waits longer gets a space now and then, which JSON allows in front of the document.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi.responses import Response, StreamingResponse
from prometheus_client import Gauge

from fedddpm_aggregator.watch import Newest, VersionWatch

BEAT_S = 20.0
_KIND = "application/json"
_UNBUFFERED = {"X-Accel-Buffering": "no"}  # nginx would keep the spaces back until the document comes


async def long_poll(watch: VersionWatch, newest: Newest, waiting: Gauge, after: int, wait_s: float) -> Response:
    """The state once its version is above ``after``, at the latest after ``wait_s`` seconds.

    ``waiting`` counts those who wait.
    """
    ends_at = _now() + wait_s
    with waiting.track_inprogress():
        over = await watch.beyond(after, min(wait_s, BEAT_S))
    if over or wait_s <= BEAT_S:
        return Response(await newest.at(watch.version), media_type=_KIND)
    return StreamingResponse(_beating(watch, newest, waiting, after, ends_at), media_type=_KIND, headers=_UNBUFFERED)


async def _beating(
    watch: VersionWatch, newest: Newest, waiting: Gauge, after: int, ends_at: float
) -> AsyncIterator[bytes]:
    with waiting.track_inprogress():
        while (left_s := ends_at - _now()) > 0:
            yield b" "
            if await watch.beyond(after, min(left_s, BEAT_S)):
                break
    yield await newest.at(watch.version)


def _now() -> float:
    return asyncio.get_running_loop().time()
