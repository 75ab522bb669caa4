"""Sums over a run's finished attempts, kept up to date from one look to the next, in memory that does not grow."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from fedddpm_aggregator.db.tables import RunRow
from fedddpm_aggregator.service.history.finished_attempts import FinishedAttempt, FinishedAttempts
from fedddpm_protocol.encoding.alarms import ALARMS
from fedddpm_protocol.wire.phases import Phase

ROUND_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0, 7 * 24 * 3600.0)


@dataclass
class RunTotals:
    """Sums over the finished attempts of one run."""

    up: int = 0  # bytes, as service/traffic counts them
    down: int = 0
    float32: int = 0
    drops: int = 0  # cohort minus survivors of the sums that were opened
    duration_s: float = 0.0  # of all published rounds, from the start of the attempt that was published
    alarms: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ALARMS, 0))  # by kind, that rang so far
    ringing: frozenset[str] = frozenset()  # kinds that rang with the newest result
    durations: list[int] = field(default_factory=lambda: [0] * (len(ROUND_S) + 1))  # rounds by ROUND_S, the rest last
    _attempts: FinishedAttempts = field(default_factory=FinishedAttempts)

    def catch_up(self, db: Session, run: RunRow, until: float) -> bool:
        """Add attempts that finished since; False if ``until`` (monotonic clock) came before all were added."""
        for attempt in self._attempts.read_on(db, run, until):
            self._add(attempt)
        return self._attempts.complete

    def _add(self, attempt: FinishedAttempt) -> None:
        opened = (line for line in attempt.lines if line.phase == Phase.DONE)
        self.drops += sum(len(line.cohort) - len(line.survivors) for line in opened)
        if attempt.traffic is not None:
            self.up += attempt.traffic.up
            self.down += attempt.traffic.down
            self.float32 += attempt.traffic.float32
        for alarm in attempt.alarms:
            self.alarms[alarm.kind] += 1
        if attempt.published_at is not None:
            self.ringing = frozenset(alarm.kind for alarm in attempt.alarms)
            self._add_duration(max(attempt.published_at - attempt.row.created_at, 0.0))

    def _add_duration(self, seconds: float) -> None:
        self.duration_s += seconds
        self.durations[next((i for i, bound in enumerate(ROUND_S) if seconds <= bound), len(ROUND_S))] += 1
