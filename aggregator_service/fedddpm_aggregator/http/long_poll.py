"""Answers that wait for news, with signs of life.

Proxies cut connections that are silent for a minute, and asking anew costs a signature, a nonce and a transaction. So
whoever waits longer gets a space now and then, which JSON allows in front of the document.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from fastapi.responses import Response, StreamingResponse
from prometheus_client import Gauge

from fedddpm_aggregator.http.version_watch import Newest, VersionWatch

BEAT_S = 20.0
_KIND = "application/json"
_UNBUFFERED = {"X-Accel-Buffering": "no"}  # nginx would keep the spaces back until the document comes


async def long_poll(watch: VersionWatch, newest: Newest, waiting: Gauge, after: int, wait_s: float) -> Response:
    """The state once its version is above ``after``, at the latest after ``wait_s`` seconds.

    ``waiting`` counts those who wait.
    """
    asked_at = time.monotonic()
    with waiting.track_inprogress():
        over = await watch.beyond(after, min(wait_s, BEAT_S))
    if over or wait_s <= BEAT_S:
        return Response(await newest.at(watch.version, asked_at), media_type=_KIND)
    beating = _beating(watch, newest, waiting, after, asked_at, asked_at + wait_s)
    return StreamingResponse(beating, media_type=_KIND, headers=_UNBUFFERED)


async def _beating(
    watch: VersionWatch, newest: Newest, waiting: Gauge, after: int, asked_at: float, ends_at: float
) -> AsyncIterator[bytes]:
    with waiting.track_inprogress():
        while (left_s := ends_at - time.monotonic()) > 0:
            yield b" "
            if await watch.beyond(after, min(left_s, BEAT_S)):
                break
    yield await newest.at(watch.version, asked_at)
