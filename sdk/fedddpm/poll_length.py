"""How long a poll may wait for news on this way to the aggregator: gateways and proxies have limits of their own.

Some limit the whole time of an answer and then cut it off, or answer 502 or 504 by themselves; some keep back the
signs of life that the aggregator sends. Either ends the same poll each time, however well the aggregator is.
"""

from __future__ import annotations

import math
import time

import httpx

from fedddpm.problems import ProblemError

CUT_AFTER_S = 6.0  # what fails sooner was not ended by such a limit; above the shortest poll, so that one passes
SHORTEST_S = 5.0
_GATEWAYS = frozenset({408, 502, 504})
_NOBODY_THERE = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_QUIET_POLLS = 20  # that pass before a longer one is tried: what cut one may have been a restart


class PollLength:
    """Learns the longest poll that passes; one for each connection."""

    def __init__(self, longest_silence_s: float) -> None:
        self._longest_silence_s = longest_silence_s  # how long an answer may take where signs of life are kept back
        self._longest_s = math.inf
        self._passed, self._trust_after = 0, _QUIET_POLLS
        self._asked_s, self._began = 0.0, 0.0

    def begin(self, wished_s: float) -> float:
        """A poll begins; the seconds that it shall wait at most."""
        self._asked_s, self._began = min(wished_s, self._longest_s), time.monotonic()
        return self._asked_s

    def passed(self) -> None:
        """It was answered. After many that waited to their end a longer one is tried, each time more seldom."""
        if self._asked_s < self._longest_s or time.monotonic() - self._began < 0.9 * self._asked_s:
            return
        self._passed += 1
        if self._passed >= self._trust_after:
            self._longest_s, self._passed, self._trust_after = 2 * self._longest_s, 0, 2 * self._trust_after

    def cut(self, error: httpx.TransportError | ProblemError) -> bool:
        """It failed; whether something on the way may have ended it, so that a shorter one is worth a try at once."""
        lasted = time.monotonic() - self._began
        if not self._asked_s or lasted < CUT_AFTER_S or not _may_be_a_limit(error):
            return False
        shorter = self._longest_silence_s if isinstance(error, httpx.ReadTimeout) else max(SHORTEST_S, lasted / 2)
        self._longest_s, self._passed = min(self._longest_s, max(SHORTEST_S, lasted / 2), shorter), 0
        return True


def _may_be_a_limit(error: httpx.TransportError | ProblemError) -> bool:
    if isinstance(error, ProblemError):
        return error.status in _GATEWAYS and not error.code  # with a code it is the aggregator that says so
    return not isinstance(error, _NOBODY_THERE)
