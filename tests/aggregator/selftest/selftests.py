"""Runs ``fedddpm-aggregator selftest`` as a process, and looks at what it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from tests.support import fork_server

SELFTEST = [sys.executable, "-m", "fedddpm_aggregator", "selftest"]
STEPS = ["storage", "schema,", "server", "join", "share", "drop", "upload", "confirm", "unmask", "sum", "verify"]
SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'fedddpm_selftest_%'"


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """Of a process whose temporary files can be looked at."""
    (tmp_path / "temporary").mkdir()
    return os.environ | {"TMPDIR": str(tmp_path / "temporary"), "COLUMNS": "400"}


def selftest(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    done = fork_server.run("fedddpm-aggregator", "selftest", *arguments, environment=variables, timeout_s=120)
    assert list(Path(variables["TMPDIR"]).iterdir()) == []
    return done


def passes(variables: dict[str, str], *arguments: str) -> str:
    done = selftest(variables, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\nselftest passed\n")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines if line and line[0] in STEPS] == STEPS
    return done.stdout


def fails(variables: dict[str, str], *arguments: str) -> str:
    done = selftest(variables, *arguments)
    assert done.returncode == 1
    assert "selftest passed" not in done.stdout
    assert done.stderr.startswith("error: selftest failed: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def schemas(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [name for (name,) in connection.execute(SCHEMAS)]
