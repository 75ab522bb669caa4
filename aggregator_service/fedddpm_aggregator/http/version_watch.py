"""Waking institutions that wait for news.

A change made by this process wakes its waiters at once; one made by another process (a replica, a command) is noticed
by looking at the version twice a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable

from fastapi.concurrency import run_in_threadpool

log = logging.getLogger(__name__)
FALLBACK_S = 0.5
FRESH_S = 0.5
_WAKE_S, _LONGEST_PAUSE_S = 0.002, 2.0  # what it takes to wake one who waits, and to have the next request
_DRAINING_S = 1.0  # for who asks again before the socket closes


class Newest:
    """What waiting requests are answered with, made once for all of them: the state as JSON.

    It may be ``FRESH_S`` old where nothing has happened but counts that grew, never older than the version asked for,
    nor than the request: who asks may have seen more of the run at another replica.
    """

    def __init__(self, make: Callable[[], tuple[int, bytes]]) -> None:
        self._make = make
        self._making = asyncio.Lock()
        self._version, self._body, self._made_at = -1, b"", -math.inf

    async def at(self, version: int, asked_at: float) -> bytes:
        """The answer at ``version`` or later to who asked at ``asked_at`` (monotonic clock)."""
        async with self._making:
            oldest = max(asked_at, time.monotonic() - FRESH_S)
            if self._version < version or self._made_at < oldest:
                made_at = time.monotonic()
                self._version, self._body = await run_in_threadpool(self._make)
                self._made_at = made_at
            return self._body


class VersionWatch:
    """Follows the version number in the database on behalf of all waiting requests."""

    def __init__(self, read_version: Callable[[], int]) -> None:
        self._read_version = read_version
        self._version = 0
        self._news = asyncio.Event()
        self._kick = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False
        self._longest_s = math.inf
        self._waiting = 0
        self._leaving = asyncio.Event()

    async def run(self) -> None:
        """Follow until stopped."""
        self._loop = asyncio.get_running_loop()
        while not self._stopped:
            try:
                version = await run_in_threadpool(self._read_version)
            except Exception:
                log.exception("cannot read the version")
            else:
                await self._pause(self._announce(version))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._kick.wait(), FALLBACK_S)
            self._kick.clear()

    @property
    def version(self) -> int:
        """The newest version that was seen."""
        return self._version

    @property
    def stopped(self) -> bool:
        """Whether nobody should wait any more: the process is about to leave."""
        return self._stopped or self._longest_s < math.inf

    async def changed(self) -> None:
        """Return at the next change, or when stopped."""
        if not self.stopped:
            await self._news.wait()

    def poke(self) -> None:
        """Something changed: look now. Callable from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._kick.set)

    def release(self) -> None:
        """Let all who wait go, and nobody wait long again: the process is about to leave. On the event loop only."""
        self._longest_s = _DRAINING_S
        self._news.set()
        self._news = asyncio.Event()

    def stop(self) -> None:
        """Let :meth:`run` end, and all who wait with it."""
        self._stopped = True
        self._leaving.set()
        self._kick.set()
        self._news.set()

    async def beyond(self, version: int, timeout_s: float) -> bool:
        """Return when the version is above ``version``, or after ``timeout_s`` seconds; False if waiting may go on."""
        longest_s = self._longest_s
        self._waiting += 1
        try:
            await self._until(version, timeout_s, longest_s)
        finally:
            self._waiting -= 1
        return self._version > version or self.stopped

    async def _until(self, version: int, timeout_s: float, longest_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(timeout_s, longest_s)):
                while self._version <= version and not self._stopped and self._longest_s == longest_s:
                    await self._news.wait()

    def _announce(self, version: int) -> int:
        """How many were woken."""
        if version == self._version:
            return 0
        self._version = version
        self._news.set()
        self._news = asyncio.Event()
        return self._waiting

    async def _pause(self, woken: int) -> None:
        """Changes that follow quickly are one: a round of many shards would wake everybody for each step of each."""
        if not self._stopped:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), min(woken * _WAKE_S, _LONGEST_PAUSE_S))
