"""Sums over a run's finished attempts, kept up to date from one look to the next.

A finished attempt never changes, so each is read once by a process. Memory does not grow with the number of rounds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedddpm_aggregator.service.overview import SessionLine, lines_of
from fedddpm_aggregator.service.traffic import TrafficTally, models_of
from fedddpm_aggregator.tables import AttemptRow, ResultRow, RunRow
from fedddpm_protocol.phases import Phase

ROUND_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0, 7 * 24 * 3600.0)
_SLICE = 50  # attempts read at once


@dataclass
class RunTally:
    """Sums over the finished attempts of one run."""

    up: int = 0  # bytes, as service/traffic counts them
    down: int = 0
    float32: int = 0
    drops: int = 0  # cohort minus survivors of the sums that were opened
    duration_s: float = 0.0  # of all published rounds, from the start of the attempt that was published
    durations: list[int] = field(default_factory=lambda: [0] * (len(ROUND_S) + 1))  # rounds by ROUND_S, the rest last
    _read_to: int = 0  # the last attempt that is in the sums
    _traffic: TrafficTally | None = None
    _unpublished: list[SessionLine] = field(default_factory=list)  # sessions of the round that is not published yet

    def catch_up(self, db: Session, run: RunRow, until: float) -> bool:
        """Add attempts that finished since; False if ``until`` (monotonic clock) came before all were added."""
        self._traffic = self._traffic or TrafficTally(models_of(run))
        finished = (AttemptRow.run_id == run.id, AttemptRow.status != "active")
        while time.monotonic() < until:
            query = select(AttemptRow).where(*finished, AttemptRow.id > self._read_to).order_by(AttemptRow.id)
            attempts = db.scalars(query.limit(_SLICE)).all()
            for attempt in attempts:
                self._add(db, run, attempt)
            if len(attempts) < _SLICE:
                return True
        return False

    def _add(self, db: Session, run: RunRow, attempt: AttemptRow) -> None:
        lines = lines_of(db, run, attempt)
        self._read_to = attempt.id
        self.drops += sum(len(line.cohort) - len(line.survivors) for line in lines if line.phase == Phase.DONE)
        if self._unpublished and self._unpublished[0].round != attempt.round:
            self._unpublished = []
        self._unpublished += lines
        traffic = self._traffic.add(self._unpublished) if self._traffic is not None else None
        if traffic is not None:
            self.up, self.down, self.float32 = (
                self.up + traffic.up,
                self.down + traffic.down,
                self.float32 + traffic.float32,
            )
            self._unpublished = []
        published_at = db.scalar(
            select(ResultRow.published_at).where(ResultRow.run_id == run.id, ResultRow.round == attempt.round)
        )
        if attempt.status == "done" and published_at is not None:
            self._add_duration(max(published_at - attempt.created_at, 0.0))

    def _add_duration(self, seconds: float) -> None:
        self.duration_s += seconds
        self.durations[next((i for i, bound in enumerate(ROUND_S) if seconds <= bound), len(ROUND_S))] += 1
