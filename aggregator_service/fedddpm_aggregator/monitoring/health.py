"""Whether the process lives and can work, and what it measures.

None of this waits on the threads that serve requests, so a database that hangs cannot make a live process look dead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi.responses import JSONResponse, Response
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from fedddpm_aggregator.blobs.interface import BlobSettingsError
from fedddpm_aggregator.db.schema import this_release
from fedddpm_aggregator.monitoring.probe import Probe
from fedddpm_aggregator.service.context import Context

T = TypeVar("T")
log = logging.getLogger(__name__)
PATIENCE_S = 2.0  # for one check; they are made side by side
OK, FAILED, HANGS = "ok", "failed", "does not answer"


class Health:
    """The checks of one process."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._release = this_release()
        self._schema = Probe(self._is_usable, keep_s=0.5)
        self._blobs = Probe(ctx.blobs.check_writable, keep_s=1.0)
        self._exposition = ThreadPoolExecutor(1, thread_name_prefix="metrics")

    async def alive(self) -> Response:
        """503 where a thread is stuck although the database answers: then only a new process helps."""
        stuck = self._ctx.pulse.stuck()
        if not stuck:
            return JSONResponse({"status": "alive"})
        answers, _ = await _checked("database", self._schema.answer_soon)
        if answers != OK:  # they wait for the database; a new process would too
            return JSONResponse({"status": "alive", "waiting_for": "database"})
        log.error("stuck", extra={"fields": {"threads": stuck}})
        return JSONResponse({"status": "stuck", "threads": stuck}, 503)

    async def ready(self) -> Response:
        """503 with the failed check where the process should get no requests."""
        if self._ctx.pulse.draining:
            return JSONResponse({"status": "shutting down"}, 503)
        (database, usable), (blobs, _) = await asyncio.gather(
            _checked("database", self._schema.answer_soon), _checked("blobs", self._blobs.answer_soon)
        )
        schema = "not this version's" if usable is False else OK
        checks = {"database": database, "schema": schema if database == OK else "unknown", "blobs": blobs}
        if all(state == OK for state in checks.values()):
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "checks": checks}, 503)

    async def exposition(self) -> Response:
        """All metrics in Prometheus' text format."""
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(self._exposition, generate_latest, self._ctx.metrics.registry)
        return Response(body, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    def close(self) -> None:
        """Measure nothing more."""
        self._exposition.shutdown(wait=False, cancel_futures=True)

    def _is_usable(self) -> bool:
        with self._ctx.tracer.quiet(), self._ctx.database.reading_engine.connect() as connection:
            return self._release.can_use(connection)


async def _checked(name: str, ask: Callable[[float], Awaitable[T]]) -> tuple[str, T | None]:
    try:
        return OK, await ask(PATIENCE_S)
    except TimeoutError:
        log.warning("check", extra={"fields": {"check": name, "error": HANGS}})
        return HANGS, None
    except Exception as error:  # noqa: BLE001 - whatever it is, the check failed
        fields = {"check": name, "error": type(error).__name__}
        if isinstance(error, BlobSettingsError):  # our words: what to do, and no credentials
            fields["reason"] = str(error)
        log.warning("check", extra={"fields": fields})
        return FAILED, None
