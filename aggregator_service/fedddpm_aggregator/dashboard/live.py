"""Server-sent events: everybody who watches the page shares one look at the database a second.

An event carries a part of the page that changed. Its id names what the browser then shows, so that a browser that was
cut off gets, once it is back, what it missed and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from fastapi.concurrency import run_in_threadpool

from fedddpm_aggregator.dashboard.views import Frame
from fedddpm_aggregator.http.version_watch import VersionWatch

log = logging.getLogger(__name__)
MOST_STREAMS = 32
LOOK_S = 1.0  # messages of institutions do not all change the version that is waited for
HEARTBEAT_S = 15.0  # so that neither side, nor a proxy, takes the line for dead
RETRY_MS = 3000


class LivePage:
    """The streams of one process."""

    def __init__(self, watch: VersionWatch, look: Callable[[], Frame]) -> None:
        self._watch, self._look = watch, look
        self._frame: Frame | None = None
        self._news = asyncio.Event()
        self._streams = 0
        self._looking: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether no more streams are taken."""
        return self._streams >= MOST_STREAMS

    async def events(self, seen: str) -> AsyncIterator[bytes]:
        """What differs from ``seen`` (an event's id), then every change, until the server stops."""
        self._streams += 1
        try:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look_on())
            yield f"retry: {RETRY_MS}\n\n".encode()
            while not self._watch.stopped:
                news, frame = self._news, self._frame
                if frame is not None and frame.id != seen:
                    for event in frame.events_since(seen):
                        yield event
                    seen = frame.id
                    continue
                try:
                    await asyncio.wait_for(news.wait(), HEARTBEAT_S)
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            self._streams -= 1

    async def _look_on(self) -> None:
        """Look as long as somebody watches."""
        while self._streams and not self._watch.stopped:
            try:
                frame = await run_in_threadpool(self._look)
            except Exception:
                log.exception("the page cannot be brought up to date; trying again")
            else:
                is_news = self._frame is None or frame.id != self._frame.id
                self._frame = frame  # the time that is left in it is newer, if nothing else
                if is_news:
                    self._announce()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._watch.changed(), LOOK_S)
        self._frame = None
        self._announce()

    def _announce(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
