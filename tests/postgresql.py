"""A real PostgreSQL for the tests, started once a session and gone with it.

PostgreSQL refuses to run as root; then it runs as ``postgres`` or ``nobody``. Where the server's programs are missing
the tests are skipped, unless FEDDDPM_REQUIRE_POSTGRES is set.
"""

from __future__ import annotations

import os
import pwd
import shutil
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


@pytest.fixture(scope="session")
def new_postgresql_database() -> Iterator[NewDatabase]:
    """A function that creates an empty database and returns its URL."""
    programs = _programs()
    if programs is None:
        if os.environ.get("FEDDDPM_REQUIRE_POSTGRES"):
            pytest.fail("FEDDDPM_REQUIRE_POSTGRES is set, but there is no PostgreSQL server to start")
        pytest.skip("there is no PostgreSQL server to start (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="fedddpm-pg-"))
    user = _other_user(folder)
    data = folder / "data"
    quiet: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **user}
    initdb: list[str | Path] = [programs / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync"]
    subprocess.run(initdb, check=True, **quiet)
    options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=120"]
    server = subprocess.Popen([programs / "postgres", "-D", data, "-k", folder, *options], **quiet)
    try:
        _wait_until_ready(folder, server)
        count = 0

        def create() -> str:
            nonlocal count
            count += 1
            with psycopg.connect(f"host={folder} user=postgres dbname=postgres", autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE fedddpm_{count} ENCODING 'UTF8' TEMPLATE template0".encode())
            return f"postgresql://postgres@/fedddpm_{count}?host={folder}"

        yield create
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(folder: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(f"host={folder} user=postgres dbname=postgres").close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
