"""A schema of a selftest's own in the PostgreSQL of an installation, and proof that nothing else is touched there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from fedddpm_aggregator.blobs.interface import BlobSettingsError, BlobsUnavailableError
from fedddpm_aggregator.db.engine import Database
from fedddpm_aggregator.errors import SelftestError
from fedddpm_aggregator.selftest.leftovers import PREFIX, Warn, is_ours, removed_in_the_end

LOCK_S = 20  # that the end waits for a server that still holds tables
_LEFT_BEHIND = text(
    "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, :prefix) AND pg_has_role(nspowner, 'USAGE')"
)
_TRY_LOCK, _UNLOCK = (
    text(f"SELECT {call}(hashtext(:name))") for call in ("pg_try_advisory_lock", "pg_advisory_unlock")
)
_HOLDS_LOCK = text(
    "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid() "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND objsubid = 1 AND objid = (hashtext(:name)::bigint & 4294967295)::oid)"
)


@contextlib.contextmanager
def own_schema(url: str, name: str, remove_blobs: Callable[[str], None], warn: Warn) -> Iterator[str]:
    """The URL of the same database, where the new schema ``name`` is all there is; SelftestError.

    Schemas of killed selftests go, with their blobs; ``warn`` hears of those that could not be removed.
    """
    database = Database(url)

    def remove() -> None:
        try:
            connection.execute(text(f"DROP SCHEMA {name} CASCADE"))
        except SQLAlchemyError as error:
            raise SelftestError(f"the schema {name} is left behind in the database: {_said(error)}") from error

    try:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(_TRY_LOCK, {"name": name})  # a schema whose lock is free is a leftover
            _require_session(connection, name)
            connection.execute(text(f"SET lock_timeout = '{LOCK_S}s'"))
            _remove_left_behind(connection, remove_blobs, warn)
            _create(connection, name)
            with removed_in_the_end(remove):
                inside = _inside(url, name)
                _require_isolation(inside, name)
                yield inside
    finally:
        database.close()


def _require_session(connection: Connection, name: str) -> None:
    """SelftestError where a lock does not outlive its statement: between this process and the server stands a pooler.

    There a later selftest would take this one's schema for a leftover.
    """
    if not connection.scalar(_HOLDS_LOCK, {"name": name}):
        raise SelftestError(
            "the database connection is not the same from one statement to the next, as behind a pooler that shares "
            "connections by transaction; give the URL of PostgreSQL itself, or of a pool in session mode "
            "(--database-url)"
        )


def _require_isolation(url: str, name: str) -> None:
    """SelftestError unless connections by this URL see the schema ``name`` and no other."""
    database = Database(url)
    try:
        with database.engine.connect() as connection:
            current, path = connection.execute(text("SELECT current_schema(), current_schemas(false)")).one()
    finally:
        database.close()
    if current != name or list(path) != [name]:
        raise SelftestError(
            f"connections do not stay in the selftest's own schema, but work in {current}: something between drops the "
            "option search_path (PgBouncer with ignore_startup_parameters), or the options in the database URL "
            "swallow it. Nothing was touched. Give the URL of PostgreSQL itself, without options (--database-url)"
        )


def _create(connection: Connection, name: str) -> None:
    try:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    except ProgrammingError as error:
        user, database = connection.execute(text("SELECT current_user, current_database()")).one()
        raise SelftestError(
            f"{user} may not create the schema that a selftest needs in the database {database}; run as its owner: "
            f"GRANT CREATE ON DATABASE {database} TO {user}"
        ) from error


def _remove_left_behind(connection: Connection, remove_blobs: Callable[[str], None], warn: Warn) -> None:
    for name in filter(is_ours, connection.scalars(_LEFT_BEHIND, {"prefix": PREFIX}).all()):
        try:
            if connection.scalar(_TRY_LOCK, {"name": name}):
                remove_blobs(name)  # first: without the schema nobody would know of them
                connection.execute(text(f"DROP SCHEMA IF EXISTS {name} CASCADE"))
                connection.execute(_UNLOCK, {"name": name})
        except SQLAlchemyError as error:
            warn(f"the schema {name} of an earlier selftest stays: {_said(error)}")
        except (OSError, BlobsUnavailableError, BlobSettingsError) as error:
            warn(f"the schema {name} of an earlier selftest stays, as its blobs do: {error}")


def _inside(url: str, schema: str) -> str:
    """The URL of the same database, where this schema is the only one that is looked into."""
    parsed = make_url(url)
    given = parsed.query.get("options", "")
    options = f"{given if isinstance(given, str) else ' '.join(given)} -csearch_path={schema}".strip()
    return parsed.update_query_dict({"options": options}).render_as_string(hide_password=False)


def _said(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", error)).splitlines()[0]
