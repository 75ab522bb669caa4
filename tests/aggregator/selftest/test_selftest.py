"""``fedddpm-aggregator selftest``: passes beside a real federation, leaves nothing, fails where something is wrong."""

from __future__ import annotations

import hashlib
import importlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
from tests.aggregator.selftest.selftests import SELFTEST, fails, passes, schemas, variables
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.processes import WatchedProcess
from tests.aggregator.support.sites import NewFederation, Site
from tests.aggregator.support.watching import first_state
from tests.support.postgresql import NewDatabase

from fedddpm_aggregator.errors import SelftestError
from fedddpm_aggregator.selftest import running
from fedddpm_aggregator.selftest.running import run_selftest
from fedddpm_aggregator.selftest.steps import Steps
from fedddpm_aggregator.settings import Settings

__all__ = ["variables"]


def test_without_anything(variables: dict[str, str], tmp_path: Path) -> None:
    out = passes(variables)
    assert "10,051 coordinates equal the plain sum" in out
    assert "1 of 5 lost its secrets" in out


def test_the_servers_own_variables_do_not_get_in_the_way(variables: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        own = {"PORT": port, "METRICS_PORT": port, "AUTHORITIES": "aggregator.example.org", "ROOT_KEY": "00" * 32}
        own |= {"SERVER_KEY": "/nowhere", "PAGE_PASSWORD_FILE": "/nowhere", "HOST": "0.0.0.0", "RATE_PER_ADDRESS": "1"}  # noqa: S104
        own |= {"BURST_PER_ADDRESS": "1", "TLS_CERT": "/nowhere", "TLS_KEY": "/nowhere", "DATA": "/nowhere"}
        passes(variables | {f"FEDDDPM_AGGREGATOR_{name}": value for name, value in own.items()})


def test_beside_a_federation_that_it_does_not_touch(
    new_federation: NewFederation, variables: dict[str, str], tmp_path: Path
) -> None:
    federation = new_federation()
    federation.start_run()
    server = WatchedProcess(federation)
    server.start()
    try:
        site = Site(federation, server.url)
        first_state(site)  # the first attempt is open: nothing changes until somebody joins
        site.close()
        before = contents(federation)
        url = ["--database-url", federation.database_url] if federation.database_url else []
        out = passes(variables, "--data", str(federation.settings.data), "--url", server.url, *url)
        assert "it lives, it can work, it asks for signatures" in out
        assert f"blobs in {federation.settings.data}/blobs/fedddpm_selftest_" in out
        assert contents(federation) == before
        if federation.database_url is not None:
            assert schemas(federation.database_url) == []
    finally:
        server.kill()


def contents(federation: Federation) -> dict[str, str]:
    """Hashes of blobs by their place, and of the tables that rounds leave their marks in."""
    blobs = federation.settings.data / "blobs"
    found = {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in blobs.rglob("*")
        if path.is_file() and not path.name.startswith(".writing-")  # the server looks whether it can write
    }
    with federation.context() as ctx, ctx.database.engine.connect() as connection:
        for table in ("federation", "rosters", "models", "runs", "attempts", "results", "audit", "nonces"):
            rows = sorted(map(repr, connection.exec_driver_sql(f"SELECT * FROM {table}")))  # noqa: S608
            found[table] = hashlib.sha256("".join(rows).encode()).hexdigest()
    return found


def test_in_an_object_store(s3_url: str, variables: dict[str, str]) -> None:
    passes(variables, "--blobs", s3_url)
    store = importlib.import_module("fedddpm_aggregator.blobs.s3").open_store(s3_url)
    assert [entry for page in importlib.import_module("obstore").list(store) for entry in page] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_test_that_is_ended(
    new_postgresql_database: NewDatabase, variables: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    """It tidies up after SIGTERM; after SIGKILL the next one does."""
    url, blobs = new_postgresql_database(), tmp_path / "blobs"
    arguments = ["--database-url", url, "--blobs", str(blobs)]
    process = subprocess.Popen([*SELFTEST, *arguments], env=variables, stdout=subprocess.DEVNULL)
    with process:
        deadline = time.monotonic() + 60
        while not (schemas(url) and any(blobs.glob("fedddpm_selftest_*/models/*"))):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == (1 if number is signal.SIGTERM else -signal.SIGKILL)
    if number is signal.SIGKILL:
        assert len(schemas(url)) == 1
        for left in Path(variables["TMPDIR"]).iterdir():
            left.rename(tmp_path / left.name)
        passes(variables, *arguments)
    assert schemas(url) == []
    assert list(blobs.iterdir()) == []


@pytest.mark.parametrize("told", [True, False])
def test_a_deployed_server_that_knows_its_names(
    new_federation: NewFederation, variables: dict[str, str], told: bool
) -> None:
    federation = new_federation()
    server = WatchedProcess(federation, authorities="aggregator.example.org, other.example.org")
    server.start()
    try:
        names = {"FEDDDPM_AGGREGATOR_AUTHORITIES": "aggregator.example.org, other.example.org"} if told else {}
        assert "it asks for signatures" in passes(variables | names, "--url", server.url)
    finally:
        server.kill()


def test_two_at_once(new_postgresql_database: NewDatabase, variables: dict[str, str], tmp_path: Path) -> None:
    url = new_postgresql_database()
    command = [*SELFTEST, "--database-url", url, "--blobs", str(tmp_path / "blobs")]
    both = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
    assert schemas(url) == []


@pytest.fixture
def storage(new_postgresql_database: NewDatabase, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A database and a folder of blobs in which nothing is left."""
    url, blobs = new_postgresql_database(), tmp_path / "blobs"
    yield Settings(data=tmp_path, database_url=url).resolved_database_url, str(blobs)
    assert schemas(url) == []
    assert list(blobs.iterdir()) == []


@pytest.mark.parametrize("segment", ["decoder", "decoder.weights"])
def test_a_wrong_sum_is_told(storage: tuple[str, str], monkeypatch: pytest.MonkeyPatch, segment: str) -> None:
    honest = running.expected_sum

    def off_by_one(seats: object, of: object) -> np.ndarray:
        total = honest(seats, of)  # type: ignore[arg-type]
        total[0] += of.name == segment  # type: ignore[attr-defined]
        return total

    monkeypatch.setattr(running, "expected_sum", off_by_one)
    steps = Steps()
    with pytest.raises(SelftestError, match=r"the opened sum .*is not the sum of"):
        run_selftest(*storage, steps)
    assert (steps.done[-1].name, steps.done[-1].result) == ("sum", "failed")


def test_a_changed_history_is_told(storage: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    verify, folder = running.verify_history, Path(storage[1])

    def after_a_change(ctx: object, root: object) -> object:
        (opened,) = folder.glob("*/opened/*/decoder")
        data = bytearray(opened.read_bytes())
        data[0] ^= 1
        opened.write_bytes(data)
        return verify(ctx, root)  # type: ignore[arg-type]

    monkeypatch.setattr(running, "verify_history", after_a_change)
    steps = Steps()
    with pytest.raises(Exception, match="run 'selftest', round 1"):
        run_selftest(*storage, steps)
    assert steps.done[-1].name == "verify"


def test_a_user_that_may_make_no_schema(new_postgresql_database: NewDatabase, variables: dict[str, str]) -> None:
    url = new_postgresql_database()
    name = url.split("/")[3].partition("?")[0]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE modest_{name} LOGIN".encode())
    line = fails(variables, "--database-url", url.replace("postgres@", f"modest_{name}@"))
    assert f"GRANT CREATE ON DATABASE {name} TO modest_{name}" in line


def test_a_deployed_server_that_is_none(variables: dict[str, str], tmp_path: Path) -> None:
    assert "http://127.0.0.1:1 does not answer" in fails(variables, "--url", "http://127.0.0.1:1")
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "healthz").touch()
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as other:
        assert other.stdout is not None
        url = other.stdout.readline().split("(")[1].split("/)")[0]
        assert "/readyz answers with status 404 instead of 200" in fails(variables, "--url", url)
        (folder / "readyz").touch()
        (folder / "v1").mkdir()
        (folder / "v1" / "state").touch()
        assert "/v1/state answers with status 200 instead of 401" in fails(variables, "--url", url)
        line = fails(variables, "--url", url.replace("//", "//ops:s3cr3t@"))
        assert "s3cr3t" not in line
        other.terminate()
    line = fails(variables, "--url", "http://ops:p@s3cr3t:word@host")
    assert "s3cr3t" not in line


def test_storage_that_cannot_be_used(variables: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in fails(variables, "--blobs", str(tmp_path / "file" / "blobs"))
    line = fails(variables, "--database-url", "postgresql://fedddpm:s3cr3t@127.0.0.1:1/name")
    assert "the database cannot be used" in line
    assert "s3cr3t" not in line
