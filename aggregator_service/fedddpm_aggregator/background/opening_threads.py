"""Background threads that open sums and publish rounds, one job per attempt across all replicas."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.sum_opening import conclude
from fedddpm_aggregator.telemetry.logs import noting
from fedddpm_aggregator.telemetry.pulse import OPENING, ShuttingDownError

log = logging.getLogger(__name__)
RETRY_S = 5.0


class OpeningThreads:
    """Runs :func:`conclude` for attempts; asking again while it runs makes it run once more."""

    def __init__(self, ctx: Context, threads: int = 2) -> None:
        self._ctx = ctx
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="opening")
        self._lock = threading.Lock()
        self._again: dict[int, bool] = {}  # running attempts -> asked again meanwhile
        self._not_before: dict[int, float] = {}  # attempts whose last try failed

    def submit(self, attempt_id: int) -> None:
        """Let an attempt be concluded soon."""
        with self._lock:
            if attempt_id in self._again:
                self._again[attempt_id] = True
                return
            if time.monotonic() < self._not_before.get(attempt_id, 0.0):
                return
            self._again[attempt_id] = False
        try:
            self._pool.submit(self._work, attempt_id)
        except RuntimeError:  # shutting down; the next process goes on
            log.info("not opening while shutting down")

    def renew(self) -> None:
        """Keep the leases of running jobs."""
        with self._lock:
            running = list(self._again)
        for attempt_id in running:
            self._lease(attempt_id)

    def close(self, grace_s: float) -> None:
        """Start nothing more; what runs is finished within ``grace_s`` seconds or given back at its next chunk."""
        give_back = threading.Timer(grace_s, self._ctx.pulse.leave)
        give_back.daemon = True
        give_back.start()
        self._pool.shutdown(wait=True, cancel_futures=True)
        give_back.cancel()

    def _work(self, attempt_id: int) -> None:
        with noting(attempt_id=attempt_id), self._ctx.tracer.span("conclude"):
            self._conclude(attempt_id)
            if not self._again:
                self._ctx.pulse.rest(OPENING)

    def _conclude(self, attempt_id: int) -> None:
        while True:
            try:
                self._ctx.pulse.beat(OPENING)
                if self._ctx.schema.look(kept_s=0) and self._lease(attempt_id):
                    conclude(self._ctx, attempt_id)
                    self._release(attempt_id)
            except ShuttingDownError as error:
                log.info("opening given back", extra={"fields": {"reason": str(error)}})
                with self._lock:
                    del self._again[attempt_id]
                return
            except Exception:
                log.exception("opening failed; trying again", extra={"fields": {"attempt": attempt_id}})
                with self._lock:
                    self._not_before[attempt_id] = time.monotonic() + RETRY_S
                    del self._again[attempt_id]
                return
            with self._lock:
                if not self._again[attempt_id]:
                    del self._again[attempt_id]
                    self._not_before.pop(attempt_id, None)
                    return
                self._again[attempt_id] = False

    def _lease(self, attempt_id: int) -> bool:
        database = self._ctx.database
        with database.write_relaxed() as db:
            now = database.now(db)
            return queries.take_lease(db, f"attempt/{attempt_id}", self._ctx.holder, now, self._ctx.limits.lease_s)

    def _release(self, attempt_id: int) -> None:
        with self._ctx.database.write_relaxed() as db:
            queries.release_lease(db, f"attempt/{attempt_id}", self._ctx.holder)
