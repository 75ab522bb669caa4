"""Storage of a selftest's own in the database and the blob store of an installation, gone when it ends."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from fedddpm_aggregator.blobs import BlobSettingsError, BlobsUnavailableError, open_blobs
from fedddpm_aggregator.database import Database
from fedddpm_aggregator.errors import SelftestError

PREFIX = "fedddpm_selftest_"
LOCK_S = 20  # that the end waits for a server that still holds tables
_LEFT_BEHIND = text("SELECT nspname FROM pg_namespace WHERE starts_with(nspname, :prefix)")
_TRY_LOCK, _UNLOCK = (
    text(f"SELECT {call}(hashtext(:name))") for call in ("pg_try_advisory_lock", "pg_advisory_unlock")
)


@dataclass(frozen=True)
class Storage:
    """Where a selftest keeps its data."""

    database_url: str
    blobs_url: str
    words: str


@contextlib.contextmanager
def own_storage(database_url: str | None, blobs_url: str | None, folder: Path) -> Iterator[Storage]:
    """A schema in a PostgreSQL and a folder in a blob store, or files in ``folder``; both are empty, then gone.

    What a killed selftest left in the same PostgreSQL and blob store goes too. SelftestError.
    """
    name = PREFIX + secrets.token_hex(8)
    with contextlib.ExitStack() as stack:
        blobs = f"{folder}/blobs"
        if blobs_url is not None:
            blobs = stack.enter_context(_own_blobs(blobs_url, name))
        if database_url is None or database_url.startswith("sqlite"):
            yield Storage(f"sqlite:///{folder.resolve()}/selftest.sqlite", blobs, f"SQLite; blobs in {blobs}")
            return
        others = _remover(blobs_url)
        url = stack.enter_context(_own_schema(database_url, name, others))
        yield Storage(url, blobs, f"schema {name}; blobs in {blobs}")


@contextlib.contextmanager
def _own_blobs(url: str, name: str) -> Iterator[str]:
    def remove() -> None:
        try:
            _remover(url)(name)
        except (OSError, BlobsUnavailableError, BlobSettingsError) as error:
            raise SelftestError(f"{url}: {name} is left behind there: {error}") from error

    with _removed_in_the_end(remove):
        yield f"{url.rstrip('/')}/{name}"


@contextlib.contextmanager
def _own_schema(url: str, name: str, remove_blobs: Callable[[str], None]) -> Iterator[str]:
    database = Database(url)

    def remove() -> None:
        try:
            connection.execute(text(f"SET lock_timeout = '{LOCK_S}s'"))
            connection.execute(text(f"DROP SCHEMA {name} CASCADE"))
        except SQLAlchemyError as error:
            said = str(getattr(error, "orig", error)).splitlines()[0]
            raise SelftestError(f"the schema {name} is left behind in the database: {said}") from error

    try:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(_TRY_LOCK, {"name": name})  # a schema whose lock is free is a leftover
            _remove_left_behind(connection, name, remove_blobs)
            _create(connection, name)
            with _removed_in_the_end(remove):
                yield _inside(url, name)
    finally:
        database.close()


def _create(connection: Connection, name: str) -> None:
    try:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    except ProgrammingError as error:
        user, database = connection.execute(text("SELECT current_user, current_database()")).one()
        raise SelftestError(
            f"{user} may not create the schema that a selftest needs in the database {database}; run as its owner: "
            f"GRANT CREATE ON DATABASE {database} TO {user}"
        ) from error


def _remove_left_behind(connection: Connection, mine: str, remove_blobs: Callable[[str], None]) -> None:
    for name in connection.scalars(_LEFT_BEHIND, {"prefix": PREFIX}).all():
        if name != mine and connection.scalar(_TRY_LOCK, {"name": name}):
            connection.execute(text(f'DROP SCHEMA IF EXISTS "{name}" CASCADE'))
            remove_blobs(name)
            connection.execute(_UNLOCK, {"name": name})


def _inside(url: str, schema: str) -> str:
    """The URL of the same database, where this schema is the only one that is looked into."""
    parsed = make_url(url)
    given = parsed.query.get("options", "")
    options = f"{given if isinstance(given, str) else ' '.join(given)} -csearch_path={schema}".strip()
    return parsed.update_query_dict({"options": options}).render_as_string(hide_password=False)


def _remover(url: str | None) -> Callable[[str], None]:
    if url is None:
        return lambda _name: None
    return open_blobs(url).remove_tree


@contextlib.contextmanager
def _removed_in_the_end(remove: Callable[[], None]) -> Iterator[None]:
    """Call ``remove`` whatever happens; what went wrong before is told rather than what goes wrong there."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(SelftestError):
            remove()
        raise
    remove()
