"""An attack of a drill, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fedddpm_aggregator.errors import AggregatorError
from fedddpm_aggregator.selftest.institution import ProblemError
from fedddpm_protocol.errors import ProtocolError

T = TypeVar("T")
NOBODY = "nobody"
SERVER, INSTITUTION = "the server", "the institution"


@dataclass(frozen=True)
class Verdict:
    """Who noticed an attack, in whose words, and what it gave away (empty: nothing)."""

    noticed: str
    leaked: str = ""


@dataclass(frozen=True)
class Attack(Generic[T]):
    """One attack; ``play`` tries it on what is there."""

    name: str
    tried: str
    play: Callable[[T], Verdict]


def refused(who: str, act: Callable[[], object], otherwise: str) -> Verdict:
    """Try ``act``, which ``who`` should refuse; if nobody does, ``otherwise`` is what leaked."""
    try:
        act()
    except ProblemError as problem:
        return Verdict(f"{who}: {problem.status} {problem.code}: {problem}")
    except (ProtocolError, AggregatorError) as error:
        return Verdict(f"{who}: {error}")
    return Verdict(NOBODY, otherwise)
