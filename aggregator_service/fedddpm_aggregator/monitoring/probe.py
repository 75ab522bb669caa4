"""Questions to parts that may hang: asked in a thread of their own, answered within a bound."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Probe(Generic[T]):
    """One question, asked by one daemon thread at a time; whoever asks meanwhile waits for the same answer.

    An answer is kept for ``keep_s`` seconds, so that strangers cannot make the process work by asking often.
    """

    def __init__(self, question: Callable[[], T], keep_s: float = 0.0) -> None:
        self._question, self._keep_s = question, keep_s
        self._lock = threading.Lock()
        self._asked: Future[T] | None = None
        self._answered_at = 0.0

    def ask(self) -> Future[T]:
        """The answer to come, which holds what the question raised; a kept one is done already."""
        with self._lock:
            asked = self._asked
            if asked is None or (asked.done() and time.monotonic() - self._answered_at >= self._keep_s):
                asked = self._asked = Future()
                asked.set_running_or_notify_cancel()  # so that nobody who stops waiting cancels it for the others
                threading.Thread(target=self._run, args=(asked,), name="probe", daemon=True).start()
            return asked

    def answer(self, timeout_s: float) -> T:
        """The answer; TimeoutError after ``timeout_s`` seconds, or what the question raised."""
        return self.ask().result(timeout_s)

    async def answer_soon(self, timeout_s: float) -> T:
        """As :meth:`answer`, without blocking the event loop."""
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(asyncio.wrap_future(self.ask()))

    def _run(self, asked: Future[T]) -> None:
        try:
            answer = self._question()
        except BaseException as error:  # noqa: BLE001 - handed to whoever asked
            self._answered_at = time.monotonic()
            asked.set_exception(error)
        else:
            self._answered_at = time.monotonic()
            asked.set_result(answer)
