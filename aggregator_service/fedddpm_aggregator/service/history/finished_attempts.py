"""A run's finished attempts in order, each read once by a process: one that is over never changes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db.tables import AttemptRow, ResultRow, RunRow
from fedddpm_aggregator.service.alarms import decoded
from fedddpm_aggregator.service.history.session_lines import SessionLine, lines_of
from fedddpm_aggregator.service.history.traffic import RoundTraffic, TrafficTally, models_of
from fedddpm_protocol.encoding.alarms import Alarm, AlarmWatch

_SLICE = 50  # attempts read at once


@dataclass(frozen=True)
class FinishedAttempt:
    """An attempt that is over, and what it ended of its round."""

    row: AttemptRow
    lines: Sequence[SessionLine]  # its sessions
    round_lines: Sequence[SessionLine]  # those of all attempts at its round up to it
    round_began_at: float  # Unix seconds, of the first of these attempts
    traffic: RoundTraffic | None  # of the round; None: this attempt did not publish it
    published_at: float | None  # Unix seconds
    alarms: tuple[Alarm, ...]  # that rang with its result


class FinishedAttempts:
    """Reads on from one look to the next; what is kept does not grow with the number of rounds."""

    def __init__(self) -> None:
        self.complete = False  # whether the last look came to the end
        self._read_to = 0  # the last attempt that was read
        self._traffic: TrafficTally | None = None
        self._round_lines: list[SessionLine] = []  # of the round that is not published yet
        self._round_began_at = 0.0
        self._alarms = AlarmWatch()

    def read_on(self, db: Session, run: RunRow, until: float) -> Iterator[FinishedAttempt]:
        """Attempts of ``run`` that finished since, not much longer than ``until`` (monotonic clock)."""
        finished = (AttemptRow.run_id == run.id, AttemptRow.status != "active")
        self.complete = False
        while not self.complete and time.monotonic() < until:
            query = select(AttemptRow).where(*finished, AttemptRow.id > self._read_to).order_by(AttemptRow.id)
            attempts = db.scalars(query.limit(_SLICE)).all()
            for attempt in attempts:
                yield self._read(db, run, attempt)
            self.complete = len(attempts) < _SLICE

    def _read(self, db: Session, run: RunRow, attempt: AttemptRow) -> FinishedAttempt:
        self._traffic = self._traffic or TrafficTally(models_of(run))
        self._read_to = attempt.id
        if not self._round_lines or self._round_lines[0].round != attempt.round:
            self._round_lines, self._round_began_at = [], attempt.created_at
        lines = lines_of(db, run, attempt)
        self._round_lines = round_lines = [*self._round_lines, *lines]
        traffic = self._traffic.add(round_lines)
        if traffic is not None:
            self._round_lines = []
        row = db.get(ResultRow, (run.id, attempt.round)) if attempt.status == "done" else None
        result = decoded(row.body) if row is not None else None
        alarms = self._alarms.follow(result) if result is not None else ()
        published_at = row.published_at if row is not None else None
        return FinishedAttempt(attempt, lines, round_lines, self._round_began_at, traffic, published_at, alarms)
