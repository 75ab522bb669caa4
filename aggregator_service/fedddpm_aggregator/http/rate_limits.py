"""How often somebody may ask: token buckets, in the memory of each replica.

Libraries for this count windows and forget keys by timers; here the number of keys is bounded instead, since whoever
floods a server also chooses from how many addresses.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

MOST_BUCKETS = 20_000
_LONGEST_ADDRESS = 64  # characters of what a proxy tells; real addresses have 45 at most


@dataclass(frozen=True)
class Rate:
    """``burst`` requests at once and ``per_s`` more each second; per_s 0 means no limit."""

    per_s: float
    burst: int


class TokenBuckets:
    """A bucket for each key. The longest unused ones are forgotten; a forgotten bucket is a full one."""

    def __init__(self, rate: Rate, most: int = MOST_BUCKETS, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._most, self._clock = rate, most, clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, and when

    def __len__(self) -> int:
        """Buckets that are remembered."""
        return len(self._buckets)

    def take(self, key: str) -> float:
        """Take a token: 0 if there was one, else the seconds until there is."""
        if self._rate.per_s == 0:
            return 0.0
        with self._lock:
            now = self._clock()
            tokens, then = self._buckets.pop(key, (float(self._rate.burst), now))
            tokens = min(float(self._rate.burst), tokens + (now - then) * self._rate.per_s)
            enough = tokens >= 1
            self._buckets[key] = (tokens - 1 if enough else tokens, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
            return 0.0 if enough else (1 - tokens) / self._rate.per_s


def address_key(address: str) -> str:
    """What an address is counted by: itself, or its /64 network in IPv6, where everybody has many addresses."""
    try:
        parsed = ip_address(address[:_LONGEST_ADDRESS])
    except ValueError:
        return address[:_LONGEST_ADDRESS]
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ip_network((int(parsed), 64), strict=False))
