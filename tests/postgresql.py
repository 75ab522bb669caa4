"""A real PostgreSQL for the tests, started once a session and gone with it, or one of a test's own.

PostgreSQL refuses to run as root; then it runs as ``postgres`` or ``nobody``. Where the server's programs are missing
the tests are skipped, unless FEDDDPM_REQUIRE_POSTGRES is set.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

NewDatabase = Callable[[], str]


def _programs() -> Path | None:
    found = shutil.which("initdb")
    candidates = [Path(found).parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in candidates if (folder / "postgres").exists()), None)


def _programs_or_skip() -> Path:
    programs = _programs()
    if programs is None:
        if os.environ.get("FEDDDPM_REQUIRE_POSTGRES"):
            pytest.fail("FEDDDPM_REQUIRE_POSTGRES is set, but there is no PostgreSQL server to start")
        pytest.skip("there is no PostgreSQL server to start (Debian: apt-get install postgresql)")
    return programs


def _other_user(folder: Path) -> dict[str, Any]:
    """Arguments that let a subprocess run as an unprivileged owner of ``folder``; none unless we are root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, entry.pw_uid, entry.pw_gid)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL refuses root and there is no user postgres or nobody")


class PostgreSQL:
    """A server of its own over a new folder, reached by a socket there."""

    def __init__(self) -> None:
        self._programs = _programs_or_skip()
        self._folder = Path(tempfile.mkdtemp(prefix="fedddpm-pg-"))
        user = _other_user(self._folder)
        self._quiet: dict[str, Any] = {
            "cwd": self._folder,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            **user,
        }
        self._data = self._folder / "data"
        self._databases = 0
        initdb: list[str | Path] = [self._programs / "initdb", "-D", self._data, "-A", "trust", "-U", "postgres"]
        subprocess.run([*initdb, "--no-sync"], check=True, **self._quiet)
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=120"]
        command = [self._programs / "postgres", "-D", self._data, "-k", self._folder, *options]
        self._server = subprocess.Popen(command, **self._quiet)
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(f"host={self._folder} user=postgres dbname=postgres").close()
                return
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def stop_immediately(self) -> None:
        """As ``pg_ctl stop -m immediate``: every connection is cut, nothing is tidied; the next start recovers."""
        assert self._server is not None
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(20)

    def new_database(self) -> str:
        """Create an empty database; its URL."""
        self._databases += 1
        name = f"fedddpm_{self._databases}"
        with psycopg.connect(f"host={self._folder} user=postgres dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0".encode())
        return f"postgresql://postgres@/{name}?host={self._folder}"

    def close(self) -> None:
        """Stop the server and delete its folder."""
        if self._server is not None:
            self._server.terminate()
            try:
                self._server.wait(5)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def postgresql_server() -> Iterator[PostgreSQL]:
    """A running server of one's own, which may be stopped and started."""
    server = PostgreSQL()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def new_postgresql_database() -> Iterator[NewDatabase]:
    """A function that creates an empty database and returns its URL."""
    with postgresql_server() as server:
        yield server.new_database


@pytest.fixture
def own_postgresql() -> Iterator[PostgreSQL]:
    """A server that one test has for itself and may stop."""
    with postgresql_server() as server:
        yield server
