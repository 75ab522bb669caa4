"""How long a poll may wait for news on this way to the aggregator: gateways and proxies have limits of their own.

Some limit the whole time of an answer and then cut it off, or answer 502 or 504 by themselves; some keep back the
signs of life that the aggregator sends. Either ends the same poll each time, however well the aggregator is.
"""

from __future__ import annotations

import math
import time

import httpx

from fedddpm.transport.problems import ProblemError

SHORTEST_S = 5.0
CUT_AFTER_S = 6.0  # what fails sooner was ended by no such limit; above the shortest poll, so that this one passes
QUIET_POLLS = 20  # that pass before a longer one is tried again: what cut one may have been a restart
_GATEWAYS = frozenset({408, 502, 504})
_NOBODY_THERE = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


class PollLength:
    """Learns the longest poll that passes; one for each connection."""

    def __init__(self, longest_silence_s: float) -> None:
        self._longest_silence_s = longest_silence_s  # a poll of this length passes without any sign of life
        self._longest_s = math.inf
        self._quiet, self._trust_after, self._on_trial = 0, QUIET_POLLS, False
        self._asked_s, self._began = 0.0, 0.0

    def begin(self, wished_s: float) -> float:
        """A poll begins; the seconds that it shall wait at most."""
        self._asked_s, self._began = min(wished_s, self._longest_s), time.monotonic()
        return self._asked_s

    def passed(self) -> None:
        """It was answered. After many that waited to their end, twice as long is tried."""
        if self._asked_s < self._longest_s or time.monotonic() - self._began < self._asked_s:
            return
        self._quiet, self._on_trial = self._quiet + 1, False
        if self._quiet >= self._trust_after:
            self._longest_s, self._quiet, self._on_trial = 2 * self._longest_s, 0, True

    def cut(self, error: httpx.TransportError | ProblemError) -> bool:
        """It failed; whether something on the way may have ended it: then a shorter one is worth a try at once."""
        lasted = time.monotonic() - self._began
        if not self._asked_s or lasted < CUT_AFTER_S or not self._may_be_a_limit(error):
            return False
        shorter = self._longest_silence_s if isinstance(error, httpx.ReadTimeout) else max(SHORTEST_S, lasted / 2)
        self._longest_s, self._quiet = min(self._longest_s, shorter), 0
        if self._on_trial:
            self._trust_after *= 2  # a limit that stays: ask for more less often
        self._on_trial = False
        return True

    def _may_be_a_limit(self, error: httpx.TransportError | ProblemError) -> bool:
        if isinstance(error, ProblemError):
            return error.status in _GATEWAYS and not error.code  # with a code it is the aggregator that says so
        if isinstance(error, httpx.ReadTimeout):
            return self._asked_s > self._longest_silence_s  # else an answer was due before reading was given up
        return not isinstance(error, _NOBODY_THERE)
