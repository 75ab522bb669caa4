"""The composition root: settings in, application out."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError

from fedddpm_aggregator.api import institutions, operators, sessions
from fedddpm_aggregator.background.opening_threads import OpeningThreads
from fedddpm_aggregator.background.sweeper import Sweeper
from fedddpm_aggregator.blobs.interface import BlobsUnavailableError
from fedddpm_aggregator.blobs.store_choice import open_blobs
from fedddpm_aggregator.dashboard.routes import Page, install_page
from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.engine import Database
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.http import problems
from fedddpm_aggregator.http.admission import Admission, rules_of
from fedddpm_aggregator.http.guard import Guard, sizes_of
from fedddpm_aggregator.http.observer import Observer
from fedddpm_aggregator.http.version_watch import Newest, VersionWatch
from fedddpm_aggregator.monitoring import endpoints
from fedddpm_aggregator.monitoring.database_metrics import DatabaseCollector
from fedddpm_aggregator.monitoring.health import Health
from fedddpm_aggregator.reduction.ray_cluster import RayReducer
from fedddpm_aggregator.reduction.threads import ThreadReducer
from fedddpm_aggregator.security.key_files import SERVER_PURPOSE, KeyFileError, read_key, read_public_key
from fedddpm_aggregator.service.administration.rosters import next_step, require_its_blobs, require_root
from fedddpm_aggregator.service.context import Context, Limits
from fedddpm_aggregator.settings import KEY_FILE, Settings
from fedddpm_aggregator.telemetry.otel import open_tracer, trace_requests
from fedddpm_protocol.primitives.keys import SigningKey, fingerprint

log = logging.getLogger(__name__)
KEY_PURPOSE = SERVER_PURPOSE
_LOCK_FILE = "serve.lock"


def prepare_directory(data: Path) -> None:
    """Make the data directory, readable by its owner only; OperatorError.

    An existing one is tightened if it is this user's and empty or already a data directory. A folder that holds
    something else stays as it is: others may have reasons to read it.
    """
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = data.stat()
        ours = any((data / name).exists() for name in (KEY_FILE, _LOCK_FILE)) or not any(data.iterdir())
        if ours and status.st_uid == os.geteuid() and status.st_mode & 0o077:
            data.chmod(stat.S_IMODE(status.st_mode) & ~0o077)
    except OSError as error:
        raise OperatorError(
            f"{data} cannot be the data directory: {error.strerror}; choose one that this user may write (--data)"
        ) from error


def server_key(settings: Settings) -> SigningKey:
    """The signing key, in a data directory that is there; OperatorError or KeyFileError before ``init``."""
    data = settings.data
    if settings.server_key is not None:  # what the directory held before may have gone with the machine
        try:
            key = read_key(settings.server_key, KEY_PURPOSE)
        except KeyFileError as error:
            raise OperatorError(f"FEDDDPM_AGGREGATOR_SERVER_KEY: {error}") from error
        prepare_directory(data)
        return key
    if not data.is_dir():
        raise OperatorError(f"{data} is no data directory; run: fedddpm-aggregator init --data {data}")
    if not settings.key_path.exists():
        raise OperatorError(f"{data} holds no {KEY_FILE}; run: fedddpm-aggregator init --data {data}")
    return read_key(settings.key_path, KEY_PURPOSE)


def open_context(settings: Settings, root: bytes | None = None) -> Context:
    """Open the data directory and its database, schema up to date; OperatorError before ``init``.

    OperatorError as well where another root key than ``root`` is pinned; then the database stays as it is.
    """
    key = server_key(settings)
    limits = Limits(
        max_chunk_bytes=settings.max_chunk_bytes,
        signature_max_age_s=settings.signature_max_age_s,
        signature_max_ahead_s=settings.signature_max_ahead_s,
        lease_s=settings.lease_s,
        unmask_grace_s=settings.unmask_grace_s,
        max_model_bytes=settings.max_model_bytes,
        keep_rounds=settings.keep_rounds,
        keep_uploads_s=settings.keep_uploads_s,
    )
    reducer = ThreadReducer(settings.reduction_threads)
    with contextlib.ExitStack() as undo:
        database = Database(settings.resolved_database_url)
        undo.callback(database.close)
        database.migrate(None if root is None else lambda connection: require_root(connection, root))
        ctx = Context(database, open_blobs(settings.blobs_url), key, limits, reducer=reducer)
        undo.pop_all()
    return ctx


def create_app(settings: Settings, opened: Context | None = None) -> FastAPI:
    """The application over one data directory, opened here unless the caller did (see :func:`data_directory`).

    A request passes the observer, the guard (which asks admission before it reads a body), and its endpoint.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with contextlib.nullcontext(opened) if opened is not None else data_directory(settings) as ctx:
            workers = OpeningThreads(ctx)
            app.state.context, app.state.health = ctx, Health(ctx)
            collector = DatabaseCollector(ctx)
            ctx.metrics.registry.register(collector)
            app.state.watch = VersionWatch(lambda: _version(ctx, app.state.watch.version))
            app.state.newest = Newest(lambda: institutions.state_json(ctx))
            app.state.page = Page(ctx, app.state.watch)
            ctx.on_change, ctx.on_work = app.state.watch.poke, workers.submit
            sweeper = Sweeper(ctx, workers, settings.tick_s)
            tasks = [asyncio.create_task(app.state.watch.run()), asyncio.create_task(sweeper.run())]
            log.info("serving", extra={"fields": {"key": fingerprint(ctx.key.public_key)}})
            with ctx.tracer.quiet():
                hint = next_step(ctx)
            if hint is not None:
                log.warning(hint)
            try:
                yield
            finally:
                sweeper.stop()
                app.state.watch.stop()
                await asyncio.gather(*tasks, return_exceptions=True)
                await run_in_threadpool(sweeper.give_back)
                await run_in_threadpool(workers.close, ctx.pulse.grace_left_s(settings.shutdown_grace_s))
                app.state.health.close()
                ctx.metrics.registry.unregister(collector)

    app = FastAPI(
        title="fedddpm aggregator",
        description="Runs federated rounds and sums masked updates. Every request under /v1 is signed (RFC 9421).",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    app.include_router(endpoints.public)
    if settings.shows_metrics:
        app.include_router(endpoints.measured)
        app.state.metrics_names = settings.names_of_metrics
    app.include_router(institutions.router)
    app.include_router(sessions.router)
    app.include_router(operators.router)
    install_page(app, settings)
    app.add_middleware(Guard, sizes=sizes_of(settings), admit=Admission(rules_of(settings)))
    app.add_middleware(Observer)  # around the guard, as it is added after it: refusals are counted too
    if opened is not None:
        trace_requests(app, opened.tracer)
    return app


@contextlib.contextmanager
def data_directory(settings: Settings) -> Iterator[Context]:
    """The context of a server: alone on a SQLite database, beside replicas on PostgreSQL."""
    server_key(settings)
    root = read_public_key(settings.root_key) if settings.root_key is not None else None
    with _directory_lock(settings.data) as alone:
        ctx = open_context(settings, root)
        try:
            if ctx.database.is_sqlite and not alone:
                raise OperatorError(f"another server uses {settings.data}; stop it, or use PostgreSQL for replicas")
            _check_blobs(ctx, alone=alone)
            if ctx.database.is_sqlite:
                with ctx.database.write() as db:
                    queries.release_leases(db, None)
            ctx.tracer = open_tracer(settings, ctx.database)
            if settings.ray is not None:
                ctx.reducer = RayReducer(settings.ray, settings.reduction_threads)
            yield ctx
        finally:
            _give_back(ctx)
            ctx.tracer.close()
            ctx.reducer.close()
            ctx.database.close()


def _give_back(ctx: Context) -> None:
    """Let other replicas go on at once; without the database they wait until the leases run out."""
    try:
        with ctx.tracer.quiet(), ctx.database.write() as db:
            queries.release_leases(db, ctx.holder)
    except SQLAlchemyError as error:
        log.warning("leases not given back", extra={"fields": {"error": type(error).__name__}})


def _check_blobs(ctx: Context, *, alone: bool) -> None:
    """Tidy the blob store, if no other server of this directory runs, and see that it is this database's.

    A store that is away for now stops no server. BlobSettingsError for one that cannot be used as it is set up,
    OperatorError for another database's.
    """
    try:
        if alone:
            ctx.blobs.remove_leftovers(alone=ctx.database.is_sqlite)
        require_its_blobs(ctx)
    except BlobsUnavailableError as error:
        log.warning(str(error))


@contextlib.contextmanager
def _directory_lock(data: Path) -> Iterator[bool]:
    """Whether this is the first server on the directory; the kernel drops the lock with the process."""
    descriptor = os.open(data / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        yield alone
    finally:
        os.close(descriptor)


def _version(ctx: Context, last: int) -> int:
    """The version in the database; the last one that was seen while the schema cannot be used."""
    if not ctx.schema.is_open:
        return last
    with ctx.tracer.quiet(), ctx.database.read() as db:
        return queries.state_version(db)
