"""A clock that moves when it is told to, for what measures times: a busy machine changes nothing in them."""

from __future__ import annotations


class HandClock:
    """In the place of the module ``time`` in a module under test. Powers of two, as 1 / 64 s, are counted exactly."""

    def __init__(self) -> None:
        self._now = 0.0

    def sleep(self, seconds: float) -> None:
        """So much later."""
        self._now += seconds

    def perf_counter(self) -> float:
        """Seconds since it was made."""
        return self._now
