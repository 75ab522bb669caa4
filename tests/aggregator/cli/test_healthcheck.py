"""The health check of a container: a command of its own process against real servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.aggregator.support.certificates import self_signed
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.processes import WatchedProcess

from fedddpm_aggregator.cli.healthcheck import local_url

CHECK = [sys.executable, "-m", "fedddpm_aggregator", "healthcheck"]


def check(*arguments: str, **variables: object) -> tuple[int, str]:
    """Status and standard error."""
    env = os.environ | {f"FEDDDPM_AGGREGATOR_{name.upper()}": str(value) for name, value in variables.items()}
    done = subprocess.run([*CHECK, *arguments], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    assert done.stderr.count("\n") == done.returncode  # one line, or none
    return done.returncode, done.stderr


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WatchedProcess]:
    running = WatchedProcess(Federation(tmp_path))
    yield running
    running.kill()


def test_a_server_that_lives_hangs_and_is_gone(server: WatchedProcess) -> None:
    server.start()
    assert check(port=server.port) == (0, "")
    assert check(port=server.port, host="0.0.0.0") == (0, "")  # noqa: S104
    assert check("--url", f"{server.url}/") == (0, "")
    os.kill(server.pid, signal.SIGSTOP)
    status, line = check(port=server.port)
    assert (status, "does not answer: timed out" in line) == (1, True)
    server.kill()
    status, line = check(port=server.port)
    assert (status, "Connection refused" in line) == (1, True)


def test_a_server_with_a_certificate_of_its_own(server: WatchedProcess, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    server.variables = {"FEDDDPM_AGGREGATOR_TLS_CERT": str(certificate), "FEDDDPM_AGGREGATOR_TLS_KEY": str(key)}
    server.start()
    assert check(port=server.port, tls_cert=certificate) == (0, "")
    assert check(port=server.port)[0] == 1  # plain HTTP
    assert check("--url", f"https://127.0.0.1:{server.port}") == (0, "")


@pytest.mark.parametrize("url", ["127.0.0.1:8750", "ftp://127.0.0.1", "http://", "http://[", "http://a:port"])
def test_what_is_no_url(url: str) -> None:
    status, line = check("--url", url)
    assert (status, "is no URL of a server" in line) == (1, True)


@pytest.mark.parametrize("url", ["ftp://ops:s3cr3t@127.0.0.1", "http://ops:s3cr3t@127.0.0.1:1"])
def test_a_password_in_a_url_is_not_shown(url: str) -> None:
    status, line = check("--url", url)
    assert (status, "127.0.0.1" in line, "s3cr3t" in line) == (1, True, False)


def test_a_server_that_is_none_of_ours(server: WatchedProcess) -> None:
    server.start()
    status, line = check("--url", f"{server.url}/elsewhere")
    assert status == 1
    assert "/elsewhere/healthz answers with status 404" in line


def test_where_it_looks() -> None:
    prefix = "FEDDDPM_AGGREGATOR_"
    assert local_url({}) == "http://127.0.0.1:8750"
    assert local_url({prefix + "HOST": "", prefix + "PORT": "", prefix + "TLS_CERT": ""}) == "http://127.0.0.1:8750"
    assert local_url({prefix + "HOST": "::", prefix + "PORT": "1", prefix + "TLS_CERT": "x"}) == "https://[::1]:1"
    assert local_url({prefix + "HOST": "10.0.0.7"}) == "http://10.0.0.7:8750"
    assert local_url({prefix + "PORT": "tcp://10.96.0.7:80"}) == "http://127.0.0.1:8750"  # Kubernetes' own variable


def test_it_loads_nothing_that_a_server_needs() -> None:
    program = "import sys, runpy; sys.argv[1:] = ['healthcheck', '--url', 'x']\n"
    program += "try: runpy.run_module('fedddpm_aggregator', run_name='__main__')\n"
    program += "except SystemExit: print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    modules = done.stdout.split()
    loaded = {name.split(".")[0] for name in modules}
    assert "fedddpm_aggregator" in loaded
    assert not loaded & {"fastapi", "pydantic", "sqlalchemy", "numpy", "torch", "typer", "httpx"}
    room = "fedddpm_protocol.untrusted."
    ours = {name.removeprefix(room) for name in modules if name.startswith(room)}
    assert ours == {"plain_text", "redaction"}, "which need nothing else"
    assert not any(name.startswith("fedddpm_protocol.") and ".untrusted" not in name for name in modules)
