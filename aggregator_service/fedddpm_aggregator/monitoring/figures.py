"""What the database says of the federation now, in a few small queries over one snapshot."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, JoinRow, MessageRow, ResultRow, RunRow
from fedddpm_aggregator.monitoring.run_totals import RunTotals
from fedddpm_aggregator.service.conduct import conduct_in
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.suspicion import suspicion_in

MOST_RUNS = 3  # the newest ones are told one by one
CATCH_UP_S = 1.0  # for attempts that finished since the last look


@dataclass(frozen=True)
class RunFigures:
    """One run; the sessions and members are those of its newest attempt."""

    name: str
    status: str
    planned: int  # rounds
    published: int
    attempts: Mapping[str, int]  # by status
    phases: Mapping[str, int]  # sessions by phase
    phase_s: Mapping[str, float]  # longest time of a session in this phase, seconds of uptime
    joined: int  # members, in any session
    cohort: int
    survivors: int  # who completed an upload
    named: int  # members that a coordinator should call
    tally: RunTotals | None  # None until all finished attempts are counted


@dataclass(frozen=True)
class Figures:
    """The federation as one snapshot of the database shows it."""

    enrolled: int  # members of the newest roster
    roster_version: int
    runs: Mapping[str, int]  # by status
    newest: tuple[RunFigures, ...]


class FigureReader:
    """Reads figures again and again; the sums over finished attempts are kept between."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._tallies: dict[int, RunTotals] = {}

    def read(self) -> Figures:
        """The figures of now; what the database raises. Not for several threads at once."""
        until = time.monotonic() + CATCH_UP_S
        with self._ctx.tracer.quiet(), self._ctx.database.read() as db:
            version = queries.newest_roster_version(db)
            newest = db.scalars(select(RunRow).order_by(RunRow.id.desc()).limit(MOST_RUNS)).all()
            self._tallies = {run.id: self._tallies.get(run.id) or RunTotals() for run in newest}
            return Figures(
                enrolled=len(self._ctx.roster(db, version).ids) if version else 0,
                roster_version=version,
                runs={
                    row[0]: row[1] for row in db.execute(select(RunRow.status, func.count()).group_by(RunRow.status))
                },
                newest=tuple(self._run(db, run, until) for run in newest),
            )

    def _run(self, db: Session, run: RunRow, until: float) -> RunFigures:
        mine = AttemptRow.run_id == run.id
        attempts = select(AttemptRow.status, func.count()).where(mine).group_by(AttemptRow.status)
        attempt = queries.newest_attempt(db, run.id)
        sessions = queries.sessions_of(db, attempt.id) if attempt is not None else ()
        phases: dict[str, int] = {}
        seconds: dict[str, float] = {}
        for row in sessions:
            phases[row.phase] = phases.get(row.phase, 0) + 1
            seconds[row.phase] = max(seconds.get(row.phase, 0.0), row.elapsed_s)
        ids = [row.id for row in sessions]
        joins = select(func.count(JoinRow.member.distinct())).where(JoinRow.session_id.in_(ids))
        uploads = select(func.count(MessageRow.member.distinct())).where(
            MessageRow.session_id.in_(ids), MessageRow.step == queries.UPLOAD
        )
        tally = self._tallies[run.id]
        return RunFigures(
            name=run.name,
            status=run.status,
            planned=run.rounds,
            published=db.scalar(select(func.count()).where(ResultRow.run_id == run.id)) or 0,
            attempts={row[0]: row[1] for row in db.execute(attempts)},
            phases=phases,
            phase_s=seconds,
            joined=db.scalar(joins) or 0,
            cohort=db.scalar(joins.where(JoinRow.in_cohort)) or 0,
            survivors=db.scalar(uploads) or 0,
            named=self._named(db, run) if queries.newest_roster_version(db) else 0,
            tally=tally if tally.catch_up(db, run, until) else None,
        )

    def _named(self, db: Session, run: RunRow) -> int:
        """Members that a coordinator should call."""
        return len(conduct_in(self._ctx, db, run, suspicion_in(self._ctx, db, run)))
