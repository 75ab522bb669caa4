"""A run's finished attempts as the operator's page tells them, each read once.

An attempt that is over never changes. What is kept of it is small, and no longer holds every member's name.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from fedddpm_aggregator.dashboard.reasons import Advice, advice_on
from fedddpm_aggregator.db.tables import RunRow
from fedddpm_aggregator.service.history.finished_attempts import FinishedAttempt, FinishedAttempts
from fedddpm_aggregator.service.history.session_lines import SessionLine
from fedddpm_aggregator.service.history.traffic import RoundTraffic
from fedddpm_protocol.encoding.alarms import Alarm
from fedddpm_protocol.encoding.losses import federation_losses
from fedddpm_protocol.wire.phases import Phase

RECENT_ROUNDS = 5  # in which a drop is told beside the member
MOST_FAILURES = 200  # the newest are kept


@dataclass(frozen=True)
class Round:
    """One published round. Of the opened sums only mean losses: see ``dashboard.routes``."""

    index: int  # from 0
    attempts: int
    cohort: int  # members
    survivors: int
    dropped: tuple[str, ...]  # in the cohort of a sum, but not in that sum
    unopened: tuple[str, ...]  # sessions that gave no sum and kept their values
    loss_before: float | None  # mean over the survivors, before local training
    loss_after: float | None
    traffic: RoundTraffic
    began_at: float  # Unix seconds, of the first attempt
    published_at: float
    alarms: tuple[Alarm, ...]  # that rang with its result

    @property
    def seconds(self) -> float:
        """From the first attempt to the result."""
        return max(0.0, self.published_at - self.began_at)


@dataclass(frozen=True)
class Failure:
    """An attempt's session that gave no sum."""

    round: int
    attempt: int
    session: str
    reason: str

    @property
    def advice(self) -> Advice:
        """What it means and what to do."""
        return advice_on(self.reason)


@dataclass(frozen=True)
class Spoiled:
    """Who broke the protocol in a session, and how."""

    round: int
    attempt: int
    session: str
    words: str


@dataclass(frozen=True)
class Taking:
    """A member's part in the run so far."""

    rounds: int  # in whose sums it is
    last_at: float | None  # Unix seconds of the newest of them
    dropped: tuple[int, ...]  # of the newest rounds, those in which it dropped out


NEVER = Taking(0, None, ())


@dataclass
class Story:
    """What the finished attempts of one run told."""

    rounds: list[Round] = field(default_factory=list)
    failures: deque[Failure] = field(default_factory=lambda: deque(maxlen=MOST_FAILURES))
    spoiled: deque[Spoiled] = field(default_factory=lambda: deque(maxlen=MOST_FAILURES))
    _attempts: FinishedAttempts = field(default_factory=FinishedAttempts)
    _taken: Counter[str] = field(default_factory=Counter)
    _last_at: dict[str, float] = field(default_factory=dict)

    def catch_up(self, db: Session, run: RunRow, until: float) -> None:
        """Read attempts that finished since, not much longer than ``until`` (monotonic clock)."""
        for attempt in self._attempts.read_on(db, run, until):
            self._add(attempt)

    @property
    def complete(self) -> bool:
        """Whether all finished attempts are in it."""
        return self._attempts.complete

    def taking(self, members: Iterable[str]) -> dict[str, Taking]:
        """Each member's part in it."""
        recent = self.rounds[-RECENT_ROUNDS:]
        return {
            member: Taking(
                rounds=self._taken[member],
                last_at=self._last_at.get(member),
                dropped=tuple(one.index for one in recent if member in one.dropped),
            )
            for member in members
        }

    def _add(self, attempt: FinishedAttempt) -> None:
        lines, published_at = attempt.lines, attempt.published_at
        self.failures += _failures(lines)
        self.spoiled += (Spoiled(one.round, one.attempt, one.part, words) for one in lines for words in one.verdicts)
        summed = [line for line in lines if line.model is not None and line.phase == Phase.DONE]
        if attempt.traffic is None or published_at is None or not summed:
            return
        survivors = _union(line.survivors for line in summed)
        self._taken.update(survivors)
        self._last_at.update(dict.fromkeys(survivors, published_at))
        sums = ((line.part, line.sums, len(line.survivors)) for line in summed)
        before, after = federation_losses(sums) or (None, None)
        published = Round(
            index=attempt.row.round,
            attempts=len({line.attempt for line in attempt.round_lines}),
            cohort=len(_union(line.cohort for line in lines)),
            survivors=len(survivors),
            dropped=_union(tuple(set(line.cohort) - set(line.survivors)) for line in summed),
            unopened=tuple(line.part for line in lines if line.phase != Phase.DONE),
            loss_before=before,
            loss_after=after,
            traffic=attempt.traffic,
            began_at=attempt.round_began_at,
            published_at=published_at,
            alarms=attempt.alarms,
        )
        self.rounds.append(published)


def _failures(lines: Iterable[SessionLine]) -> list[Failure]:
    return [
        Failure(line.round, line.attempt, line.part, line.reason or "no reason is recorded")
        for line in lines
        if line.phase == Phase.FAILED
    ]


def _union(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted({member for group in groups for member in group}))
