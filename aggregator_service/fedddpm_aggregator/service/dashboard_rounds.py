"""A run's finished attempts as the operator's page tells them, each read once.

An attempt that is over never changes. What is kept of it is small, and no longer holds every member's name.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedddpm_aggregator.service.dashboard_reasons import Advice, advice_on
from fedddpm_aggregator.service.overview import SessionLine, lines_of
from fedddpm_aggregator.service.traffic import RoundTraffic, TrafficTally, models_of
from fedddpm_aggregator.tables import AttemptRow, ResultRow, RunRow
from fedddpm_protocol.methods import reports_losses
from fedddpm_protocol.phases import Phase
from fedddpm_protocol.spec import LOSS_UNITS

RECENT_ROUNDS = 5  # in which a drop is told beside the member
MOST_FAILURES = 200  # the newest are kept
_SLICE = 50  # attempts read at once


@dataclass(frozen=True)
class Round:
    """One published round. Of the opened sums only mean losses: see the package ``dashboard``."""

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
    complete: bool = False  # whether all finished attempts are in it
    _read_to: int = 0  # the last attempt that is in it
    _traffic: TrafficTally | None = None
    _unpublished: list[SessionLine] = field(default_factory=list)  # sessions of the round that is not published yet
    _began_at: float = 0.0  # of that round's first attempt
    _taken: Counter[str] = field(default_factory=Counter)
    _last_at: dict[str, float] = field(default_factory=dict)

    def catch_up(self, db: Session, run: RunRow, until: float) -> None:
        """Read attempts that finished since, not much longer than ``until`` (monotonic clock)."""
        self._traffic = self._traffic or TrafficTally(models_of(run))
        finished = (AttemptRow.run_id == run.id, AttemptRow.status != "active")
        self.complete = False
        while not self.complete and time.monotonic() < until:
            query = select(AttemptRow).where(*finished, AttemptRow.id > self._read_to).order_by(AttemptRow.id)
            attempts = db.scalars(query.limit(_SLICE)).all()
            for attempt in attempts:
                self._add(db, run, attempt)
            self.complete = len(attempts) < _SLICE

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

    def _add(self, db: Session, run: RunRow, attempt: AttemptRow) -> None:
        lines = lines_of(db, run, attempt)
        self._read_to = attempt.id
        self.failures += _failures(lines)
        if not self._unpublished or self._unpublished[0].round != attempt.round:
            self._unpublished, self._began_at = [], attempt.created_at
        self._unpublished += lines
        traffic = self._traffic.add(self._unpublished) if self._traffic is not None else None
        summed = [line for line in lines if line.model is not None and line.phase == Phase.DONE]
        if traffic is None or not summed:
            return
        mine = (ResultRow.run_id == run.id, ResultRow.round == attempt.round)
        published_at = db.scalars(select(ResultRow.published_at).where(*mine)).one()
        survivors = _union(line.survivors for line in summed)
        self._taken.update(survivors)
        self._last_at.update(dict.fromkeys(survivors, published_at))
        before, after = _losses(summed)
        published = Round(
            index=attempt.round,
            attempts=len({line.attempt for line in self._unpublished}),
            cohort=len(_union(line.cohort for line in lines)),
            survivors=len(survivors),
            dropped=_union(tuple(set(line.cohort) - set(line.survivors)) for line in summed),
            unopened=tuple(line.part for line in lines if line.phase != Phase.DONE),
            loss_before=before,
            loss_after=after,
            traffic=traffic,
            began_at=self._began_at,
            published_at=published_at,
        )
        self.rounds.append(published)
        self._unpublished = []


def _losses(lines: Sequence[SessionLine]) -> tuple[float | None, float | None]:
    """Mean losses over everybody whose losses are in one of the sums."""
    telling = [line for line in lines if line.sums and reports_losses(line.part)]
    members = sum(len(line.survivors) for line in telling)
    if not members:
        return None, None
    before, after = (sum(line.sums[place] for line in telling) for place in (1, 2))
    return before / (members * LOSS_UNITS), after / (members * LOSS_UNITS)


def _failures(lines: Iterable[SessionLine]) -> list[Failure]:
    return [
        Failure(line.round, line.attempt, line.part, line.reason or "no reason is recorded")
        for line in lines
        if line.phase == Phase.FAILED
    ]


def _union(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted({member for group in groups for member in group}))
