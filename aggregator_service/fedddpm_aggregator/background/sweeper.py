"""The clock of the service: counts uptime in phases, closes expired ones, starts rounds, tidies up.

Replicas share the work by a lease: only its holder sweeps, and another takes over when it falls silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time

from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from fedddpm_aggregator.background.opening_threads import OpeningThreads
from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, RunRow
from fedddpm_aggregator.service.administration import model_uploads
from fedddpm_aggregator.service.administration.rosters import react_to_roster
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.attempts import settle, start_attempt, stop_without_charter
from fedddpm_aggregator.service.rounds.phases import advance
from fedddpm_aggregator.service.rounds.publishing import remove_strays, scrub
from fedddpm_aggregator.service.rounds.retention import retain
from fedddpm_aggregator.service.rounds.sessions import live_of
from fedddpm_aggregator.telemetry.logs import noting
from fedddpm_aggregator.telemetry.pulse import SWEEPER
from fedddpm_protocol.wire.phases import TERMINAL, Phase

log = logging.getLogger(__name__)
TIDY_S = 60.0
_MOST_TICKS = 4  # a process that was stopped for longer does not count that time


class Sweeper:
    """One tick after the other until stopped."""

    def __init__(self, ctx: Context, workers: OpeningThreads, tick_s: float) -> None:
        self._ctx, self._workers, self._tick_s = ctx, workers, tick_s
        self._tidied_at = 0.0
        self._renewed_at = -math.inf  # monotonic clock, when the lease was asked for
        self._cleared_version = -1  # of the state: nothing has ended since
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let :meth:`run` end after the tick it is in."""
        self._stopping.set()

    async def run(self) -> None:
        """Tick until stopped; an error costs one tick."""
        last = time.monotonic()
        while not self._stopping.is_set():
            self._ctx.pulse.beat(SWEEPER)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._tick_s)
                return
            now = time.monotonic()
            try:
                with noting(), self._ctx.tracer.quiet():
                    await run_in_threadpool(self.tick, min(now - last, _MOST_TICKS * self._tick_s))
            except Exception:
                log.exception("a tick failed; trying again")
            last = now

    def tick(self, elapsed_s: float) -> None:
        """Count ``elapsed_s`` of uptime and do what is due; nothing while another replica sweeps.

        Nothing either while the schema is one that this release cannot use.
        """
        if not self._ctx.schema.look():
            self._renewed_at = -math.inf
            self._ctx.metrics.sweeper_lease.set(0)
            return
        self._workers.renew()
        if not self._holds_lease():
            return
        with self._ctx.database.read() as db:
            version = queries.state_version(db)
            open_runs = bool(queries.open_runs(db)) and queries.newest_roster_version(db) > 0
        if open_runs:
            with self._ctx.transaction() as db:
                for run in queries.open_runs(db):
                    self._sweep_run(db, run, elapsed_s)
        if time.monotonic() - self._tidied_at > TIDY_S:
            self._tidied_at = time.monotonic()
            self._tidy()
        elif version != self._cleared_version:  # an attempt may have ended: that is news
            self._clear()
        self._cleared_version = version

    def _holds_lease(self) -> bool:
        """Take the lease, or renew it in its last two thirds."""
        database, lease_s = self._ctx.database, self._ctx.limits.lease_s
        asked_at = time.monotonic()
        if asked_at < self._renewed_at + lease_s / 3:
            return True
        with database.write_relaxed() as db:
            held = queries.take_lease(db, "sweeper", self._ctx.holder, database.now(db), lease_s)
        self._renewed_at = asked_at if held else -math.inf
        self._ctx.metrics.sweeper_lease.set(held)
        return held

    def give_back(self) -> None:
        """Let another replica sweep at once."""
        try:
            with self._ctx.tracer.quiet(), self._ctx.database.write_relaxed() as db:
                queries.release_lease(db, "sweeper", self._ctx.holder)
        except SQLAlchemyError as error:
            log.warning("the lease runs out by itself", extra={"fields": {"error": type(error).__name__}})
        self._ctx.metrics.sweeper_lease.set(0)

    def _sweep_run(self, db: Session, run: RunRow, elapsed_s: float) -> None:
        attempt = queries.newest_attempt(db, run.id, lock=True)
        db.refresh(run)
        if run.charter is None and run.status == "running":
            stop_without_charter(self._ctx, db, run, attempt)
            return
        if (attempt is None or attempt.status != "active") and run.status == "running":
            start_attempt(self._ctx, db, run)
            return
        react_to_roster(self._ctx, db, run, attempt)
        if attempt is not None and attempt.status == "active":
            self._sweep_attempt(db, run, attempt, elapsed_s)

    def _sweep_attempt(self, db: Session, run: RunRow, attempt: AttemptRow, elapsed_s: float) -> None:
        for row in queries.sessions_of(db, attempt.id):
            live = live_of(self._ctx, db, attempt, row)
            if live.phase in TERMINAL or (live.phase is Phase.JOIN and run.status == "paused"):
                continue
            if live.phase is Phase.OPENING:  # a process was killed while it opened this sum
                queries.announce_work(db, attempt.id)
                continue
            if live.phase is not Phase.JOIN or row.elapsed_s < self._ctx.spec_of(attempt).join_s:
                row.elapsed_s += elapsed_s
            advance(self._ctx, db, live)
            if attempt.status != "active":
                return
        settle(self._ctx, db, attempt)

    def _clear(self) -> None:
        """Delete what attempts that are over, and old rounds, leave behind."""
        scrub(self._ctx)
        retain(self._ctx)

    def _tidy(self) -> None:
        with self._ctx.database.write_relaxed() as db:
            queries.forget_old_nonces(db, time.time())
        self._clear()
        remove_strays(self._ctx)
        model_uploads.remove_leftovers(self._ctx, time.time())
