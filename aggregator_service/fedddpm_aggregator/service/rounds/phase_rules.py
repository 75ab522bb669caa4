"""When a phase of a session ends: deadlines and quorum, as pure rules.

Time is uptime spent in the phase, so an outage of the aggregator costs nobody the round.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fedddpm_protocol.wire.phases import Phase


class Verdict(Enum):
    """What to do with a phase now."""

    WAIT = "wait"
    CLOSE = "close"
    FAIL = "fail"


@dataclass(frozen=True)
class Decision:
    """A verdict and, for a failure, its reason in words."""

    verdict: Verdict
    reason: str | None = None


WAIT = Decision(Verdict.WAIT)
CLOSE = Decision(Verdict.CLOSE)


@dataclass(frozen=True)
class PhaseView:
    """One phase as the rules see it."""

    phase: Phase
    elapsed_s: float
    duration_s: float
    expected: frozenset[str]  # members who can still do this step, or did
    done: frozenset[str]  # members who did
    needed: int  # fewest that may go on

    @property
    def expired(self) -> bool:
        """Whether the phase has used its duration."""
        return self.elapsed_s >= self.duration_s

    @property
    def complete(self) -> bool:
        """Whether everybody who can did."""
        return self.expected <= self.done


def may_form(view: PhaseView) -> bool:
    """Whether JOIN is over if a cohort can be formed: everybody joined, or the duration is used.

    Too few joins fail nothing by themselves: waiting for members costs nobody the round.
    """
    return view.complete or view.expired


def decide(view: PhaseView) -> Decision:
    """Whether a phase between JOIN and UNMASK closes now.

    SHARES, MASKED and CONFIRM close when everybody did their part, or at the duration with at least ``needed``; they
    fail at the duration with fewer, and at once when so many members are gone that ``needed`` cannot be reached.
    """
    enough = len(view.done) >= view.needed
    if enough and (view.complete or view.expired):
        return CLOSE
    possible = len(view.expected | view.done)
    if possible < view.needed:
        return Decision(Verdict.FAIL, f"only {possible} members are left in {view.phase}, {view.needed} are needed")
    if view.expired:
        missing = ", ".join(sorted(view.expected - view.done)) or "nobody"
        reason = f"{view.phase} ended with {len(view.done)} of {view.needed} needed members; not heard of: {missing}"
        return Decision(Verdict.FAIL, reason)
    return WAIT


def worth_opening(view: PhaseView, waited_with_enough_s: float | None, grace_s: float) -> bool:
    """Whether to try to open the sum with the UNMASK answers that are there.

    With at least ``needed`` answers: when everybody answered, after ``grace_s`` more seconds, or at the duration.
    """
    if len(view.done) < view.needed:
        return False
    waited = waited_with_enough_s is not None and waited_with_enough_s >= grace_s
    return view.complete or view.expired or waited


def no_answer_can_come(view: PhaseView) -> bool:
    """Whether UNMASK is over without a sum: everybody answered, or the duration is used, or too few can answer."""
    return view.complete or view.expired or len(view.expected | view.done) < view.needed
