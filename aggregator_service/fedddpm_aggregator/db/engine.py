"""Transactions on SQLite or PostgreSQL: the same code, two ways to be durable.

SQLite: write-ahead log, ``synchronous=FULL``, one writer at a time (``BEGIN IMMEDIATE``, queued in this process by a
lock and between processes by the busy timeout). PostgreSQL: writers are READ COMMITTED with row locks, readers see one
snapshot (REPEATABLE READ), as SQLite's do.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

from sqlalchemy import Connection, Engine, create_engine, event, func, literal, make_url, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import InstrumentedAttribute, Session, sessionmaker

from fedddpm_aggregator.db.schema import bring_up_to_date
from fedddpm_aggregator.db.tables import Base
from fedddpm_aggregator.errors import OperatorError

BUSY_TIMEOUT_S = 30.0
THREADS = 16  # connections that are kept open
# For a server in the C locale, which would answer in bytes, and for connections to a machine that went away without a
# word (seconds; the last one milliseconds). The URL may differ.
CONNECTING = {
    "client_encoding": "utf8",
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
MIGRATION_LOCK = 0x66656464  # any number, the same in all replicas


class Database:
    """One database, by SQLAlchemy URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self.engine = _sqlite_engine(url, "FULL") if self.is_sqlite else _postgresql_engine(url)
        # A second door for what may be lost in a power cut (seen nonces, leases, elapsed time): no wait for the disk.
        self.relaxed_engine = _sqlite_engine(url, "NORMAL") if self.is_sqlite else self.engine
        self.reading_engine = self.engine if self.is_sqlite else _of_snapshots(self.engine)
        self._views = sessionmaker(self.reading_engine, expire_on_commit=False)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._relaxed = sessionmaker(self.relaxed_engine, expire_on_commit=False)
        self._writer = threading.Lock() if self.is_sqlite else nullcontext()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One moment, whatever is written between two statements, so that replies fit together; nothing is kept."""
        with self._views() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is on disk when the block ends, or gone when it raises."""
        with self._writer, self._sessions() as session, session.begin():
            session.connection(execution_options={"fedddpm_write": True})
            yield session

    @contextmanager
    def write_relaxed(self) -> Iterator[Session]:
        """As :meth:`write`, but a power cut (not a killed process) may lose it."""
        with self._writer, self._relaxed() as session, session.begin():
            session.connection(execution_options={"fedddpm_write": True})
            if not self.is_sqlite:
                session.execute(text("SET LOCAL synchronous_commit TO OFF"))
            yield session

    def now(self, session: Session) -> float:
        """Unix seconds by the clock that all replicas share."""
        if self.is_sqlite:
            return time.time()
        return float(session.scalar(select(func.extract("epoch", func.clock_timestamp()))) or 0.0)

    def migrate(self, check: Callable[[Connection], None] | None = None) -> None:
        """Bring the schema to this release's; OperatorError for one of a newer release that this one cannot use.

        ``check`` looks at the database before anything is changed, and keeps it as it is by raising.
        """
        with self.engine.connect() as connection:
            connection.execution_options(fedddpm_write=True)
            with connection.begin():
                if not self.is_sqlite:  # two replicas that start together migrate one after the other
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
                if check is not None:
                    check(connection)
                bring_up_to_date(connection)

    def close(self) -> None:
        """Close all connections."""
        self.relaxed_engine.dispose()
        self.engine.dispose()


def insert_many_once(
    session: Session, table: type[Base], rows: Sequence[Mapping[str, object]], *key: InstrumentedAttribute[str]
) -> frozenset[tuple[str, ...]]:
    """Insert the rows whose keys do not exist yet; the keys (the columns ``key``) of those that were inserted."""
    statement = _insert_of(session)(Base.metadata.tables[table.__tablename__]).on_conflict_do_nothing()
    inserted = session.connection().execute(statement.returning(*key), rows)
    return frozenset(tuple(row) for row in inserted)


def _insert_of(session: Session) -> Callable[..., postgresql.Insert | sqlite.Insert]:
    return postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert


def insert_once(session: Session, table: type[Base], **values: object) -> bool:
    """Insert a row unless its key exists; True if it was inserted."""
    table_of = Base.metadata.tables[table.__tablename__]
    statement = _insert_of(session)(table_of).on_conflict_do_nothing().returning(literal(1))
    return session.connection().execute(statement, values).first() is not None


# Both engines hide parameters: they are the messages of institutions, and errors of the database go to the log.


def _sqlite_engine(url: str, synchronous: str) -> Engine:
    engine = create_engine(
        url, connect_args={"timeout": BUSY_TIMEOUT_S}, pool_size=THREADS, max_overflow=8, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # the driver must not open transactions of its own
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("fedddpm_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _of_snapshots(engine: Engine) -> Engine:
    """The same connections, where a transaction sees one moment and writes nothing; as many round trips.

    The driver says both in the BEGIN that it sends anyway.
    """
    reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    dialect = cast(PGDialect, engine.dialect)

    @event.listens_for(engine, "checkin")
    def leave_to_the_server(connection: DBAPIConnection | None, _: object) -> None:
        if connection is not None:  # SQLAlchemy asks for READ WRITE from then on, even of a database set to read only
            dialect.set_readonly(connection, None)  # type: ignore[no-untyped-call]

    return reading


def _postgresql_engine(url: str) -> Engine:
    asked = make_url(url).query
    try:
        return create_engine(
            url,
            connect_args={name: value for name, value in CONNECTING.items() if name not in asked},
            pool_pre_ping=True,
            pool_size=THREADS,
            max_overflow=8,
            pool_recycle=1800,
            hide_parameters=True,
        )
    except ModuleNotFoundError as error:
        raise OperatorError(
            f"PostgreSQL needs the package {error.name}; install it with: pip install 'fedddpm-aggregator[postgresql]'"
        ) from error
