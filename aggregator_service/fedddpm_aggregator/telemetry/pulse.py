"""Signs of life of a process's threads, and whether it is about to leave."""

from __future__ import annotations

import time

SWEEPER, OPENING = "sweeper", "opening"
STUCK_S = {SWEEPER: 60.0, OPENING: 600.0}  # silence that no work explains


class ShuttingDownError(Exception):
    """The process is leaving; another one goes on with the work."""


class Pulse:
    """Beats of named threads, in seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.draining = False  # asked to leave: take no more work from a load balancer
        self.leaving = False  # give back what is not finished
        self._leave_by = 0.0  # monotonic clock
        self._beats: dict[str, float] = {}

    def beat(self, name: str) -> None:
        """``name`` lives."""
        self._beats[name] = time.monotonic()

    def rest(self, name: str) -> None:
        """``name`` has nothing to do, so silence is fine."""
        self._beats.pop(name, None)

    def drain(self, within_s: float) -> None:
        """The process shall leave within so many seconds."""
        self.draining, self._leave_by = True, time.monotonic() + within_s

    def grace_left_s(self, otherwise_s: float) -> float:
        """Seconds until the process shall be gone, at least one; ``otherwise_s`` if nobody asked it to leave."""
        return max(self._leave_by - time.monotonic(), 1.0) if self.draining else otherwise_s

    def leave(self) -> None:
        """Give back what is not finished."""
        self.leaving = True

    def progress(self) -> None:
        """A step of opening a sum; ShuttingDownError where it should be given back."""
        if self.leaving:
            raise ShuttingDownError("the process shuts down; another one opens this sum")
        self.beat(OPENING)

    def stuck(self) -> list[str]:
        """Names that were silent for too long."""
        now = time.monotonic()
        return sorted(name for name, at in list(self._beats.items()) if now - at > STUCK_S[name])
