"""A real PostgreSQL for the tests, started once a session and gone with it, or one of a test's own.

Where the server's programs are missing the tests are skipped, unless FEDDDPM_REQUIRE_POSTGRES is set.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest
from benchmarks.load.postgresql import NoPostgreSQLError, PostgreSQL, postgresql_server

NewDatabase = Callable[[], str]


@contextlib.contextmanager
def postgresql_or_skip() -> Iterator[PostgreSQL]:
    """A running server of one's own, which may be stopped and started; the test is skipped without PostgreSQL."""
    try:
        server = postgresql_server(fsync=False)
        running = server.__enter__()
    except NoPostgreSQLError as error:
        if os.environ.get("FEDDDPM_REQUIRE_POSTGRES"):
            pytest.fail(f"FEDDDPM_REQUIRE_POSTGRES is set, but {error}")
        pytest.skip(str(error))
    try:
        yield running
    finally:
        server.__exit__(None, None, None)


@pytest.fixture(scope="session")
def new_postgresql_database() -> Iterator[NewDatabase]:
    """A function that creates an empty database and returns its URL."""
    with postgresql_or_skip() as server:
        yield server.new_database


@pytest.fixture
def own_postgresql() -> Iterator[PostgreSQL]:
    """A server that one test has for itself and may stop."""
    with postgresql_or_skip() as server:
        yield server
