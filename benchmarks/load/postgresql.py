"""A PostgreSQL of one's own over a temporary folder, for benchmarks and tests.

PostgreSQL refuses to run as root; then it runs as ``postgres`` or ``nobody``.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg


class NoPostgreSQLError(RuntimeError):
    """There is no PostgreSQL server here that could be started."""


def _programs() -> Path:
    found = shutil.which("initdb")
    candidates = [Path(found).parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in candidates:
        if (folder / "postgres").exists():
            return folder
    raise NoPostgreSQLError("there is no PostgreSQL server to start (Debian: apt-get install postgresql)")


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
    raise NoPostgreSQLError("PostgreSQL refuses root and there is no user postgres or nobody")


class PostgreSQL:
    """A server of its own over a new folder, reached by a socket there."""

    def __init__(self, *, fsync: bool = True) -> None:
        self._programs, self._fsync = _programs(), fsync
        self._folder = Path(tempfile.mkdtemp(prefix="fedddpm-pg-"))
        user = _other_user(self._folder)
        self._quiet: Any = {
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
        options = ["-c", "listen_addresses=", "-c", f"fsync={'on' if self._fsync else 'off'}"]
        options += ["-c", "max_connections=120"]
        command: list[str | Path] = [self._programs / "postgres", "-D", self._data, "-k", self._folder, *options]
        self._server = server = subprocess.Popen(command, **self._quiet)
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(f"host={self._folder} user=postgres dbname=postgres").close()
                return
            except psycopg.OperationalError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def stop_immediately(self) -> None:
        """As ``pg_ctl stop -m immediate``: every connection is cut, nothing is tidied; the next start recovers."""
        if self._server is None:
            raise RuntimeError("this PostgreSQL was not started")
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(20)

    def new_database(self, encoding: str = "UTF8") -> str:
        """Create an empty database; its URL."""
        self._databases += 1
        name = f"fedddpm_{self._databases}"
        with psycopg.connect(f"host={self._folder} user=postgres dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0".encode())
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
def postgresql_server(*, fsync: bool = True) -> Iterator[PostgreSQL]:
    """A running server of one's own, which may be stopped and started; NoPostgreSQLError."""
    server = PostgreSQL(fsync=fsync)
    try:
        server.start()
        yield server
    finally:
        server.close()
