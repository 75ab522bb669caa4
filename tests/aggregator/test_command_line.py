"""``fedddpm-aggregator`` as an operator and a root use it; a mistake is one line, never a traceback."""

from __future__ import annotations

import datetime
import ipaddress
import json
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.aggregator.federations import ARCHITECTURE, MANIFESTS, identity_of, theta_0

from fedddpm_aggregator import cli
from fedddpm_aggregator.models import to_safetensors

PUBLIC = {name: identity_of(name).public_key.hex() for name in "abcde"}


class Shell:
    """Runs commands in this process, in a folder of their own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: str) -> str:
        """The output of a command that succeeds."""
        code, out, err = self.run(*arguments)
        assert code == 0, err
        return out

    def fails(self, *arguments: str) -> str:
        """The one line of a command that is refused."""
        code, _, err = self.run(*arguments)
        assert code == 1
        assert err.startswith("error: ")
        assert err.count("\n") == 1, err
        return err

    def run(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["fedddpm-aggregator", *arguments])
        handlers = logging.root.handlers[:]
        try:
            cli.main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            logging.root.handlers[:] = handlers  # serve sends logs to the standard error of this moment
        captured = self._capsys.readouterr()
        return int(str(code)), captured.out, captured.err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return Shell(capsys, monkeypatch)


def enrol(shell: Shell) -> str:
    """Root key, data directory and roster of three; the server's public key."""
    root = re.search(r"root public key  ([0-9a-f]{64})", shell("federation", "root-keygen", "--out", "root.key"))
    assert root is not None
    server = re.search(r"server public key  ([0-9a-f]{64})", shell("init", "--data", "d", "--root-key", root[1]))
    assert server is not None
    members = [word for name in "abc" for word in ("--member", f"{name}={PUBLIC[name]}")]
    create = ["federation", "roster", "create", "roster.json", "--root", "root.key", "--federation", "north"]
    assert "roster version 1" in shell(*create, "--server-key", server[1], *members)
    assert "version 1 of north is in force: 3 members" in shell("federation", "install", "roster.json", "--data", "d")
    return server[1]


def theta(path: str = "theta_0.safetensors") -> str:
    Path(path).write_bytes(to_safetensors(ARCHITECTURE, MANIFESTS, theta_0()))
    return path


START = ["federation", "start-run", "--data", "d", "--name", "run-1", "--rounds", "2"]


def test_from_keys_to_a_run(shell: Shell) -> None:
    enrol(shell)
    assert "run run-1 starts: 2 rounds of UDEC" in shell(*START, "--method", "udec", "--initial-model", theta())
    assert json.loads(shell("rounds", "--data", "d", "--json")) == []  # begins once the server runs
    assert "no round yet" in shell("rounds", "--data", "d")
    assert "run run-1 is ended" in shell("federation", "end-run", "--data", "d")


def test_keys_are_private_and_never_overwritten(shell: Shell) -> None:
    enrol(shell)
    for path in (Path("root.key"), Path("d/server.key")):
        assert path.stat().st_mode & 0o777 == 0o600
    before = Path("d/server.key").read_bytes()
    shell("init", "--data", "d")
    assert Path("d/server.key").read_bytes() == before
    assert "never overwritten" in shell.fails("federation", "root-keygen", "--out", "root.key")
    Path("root.key").chmod(0o644)
    add = ["federation", "roster", "add", "roster.json", "--root", "root.key", "--member", f"d={PUBLIC['d']}"]
    assert "chmod 600" in shell.fails(*add)


def test_the_roster_counts_up(shell: Shell) -> None:
    enrol(shell)
    roster = ["federation", "roster"]
    change = ["roster.json", "--root", "root.key"]
    assert "roster version 2" in shell(*roster, "add", *change, "--member", f"d={PUBLIC['d']}")
    assert "roster version 3" in shell(*roster, "remove", *change, "--member", "a")
    release = ["--base", "ab" * 32, "--part", "decoder", "--old", "b, c,d", "--new", "b,c"]
    shown = shell(*roster, "release", *change, *release)
    assert "roster version 4" in shown
    assert "release of decoder" in shown
    old = Path("roster.json").read_text()
    shell("federation", "install", "roster.json", "--data", "d")
    shell(*roster, "add", *change, "--member", f"e={PUBLIC['e']}")
    shell("federation", "install", "roster.json", "--data", "d")
    Path("old.json").write_text(old)
    assert "never go back" in shell.fails("federation", "install", "old.json", "--data", "d")
    assert "roster version 5" in shell(*roster, "show", "roster.json")


def test_mistakes_are_one_line(shell: Shell) -> None:
    assert "run: fedddpm-aggregator init" in shell.fails("rounds", "--data", "nowhere")
    assert "64 hex digits" in shell.fails("init", "--data", "d", "--root-key", "xyz")
    shell("init", "--data", "d")
    assert "no roster is installed" in shell.fails(*START, "--method", "UDEC", "--initial-model", theta())
    Path("junk").write_text("junk")
    assert "no signed roster" in shell.fails("federation", "install", "junk", "--data", "d")
    Path("junk").chmod(0o600)
    assert "not a key file" in shell.fails("federation", "roster", "add", "junk", "--root", "junk", "--member", "a=b")
    assert "belong together" in shell.fails("serve", "--data", "d", "--tls-cert", "cert.pem")
    assert "there is no run" in shell.fails("federation", "end-run", "--data", "d")
    bad_url = ["--database-url", "postgresql://nobody@/none?host=/nonexistent"]
    assert "the database cannot be used" in shell.fails("rounds", "--data", "d", *bad_url)


def test_the_root_key_is_pinned_for_good(shell: Shell) -> None:
    enrol(shell)
    assert "never changes its root key" in shell.fails("init", "--data", "d", "--root-key", PUBLIC["a"])
    shell("federation", "root-keygen", "--out", "other.key")
    create = ["federation", "roster", "create", "other.json", "--root", "other.key", "--federation", "north"]
    members = [word for name in "abc" for word in ("--member", f"{name}={PUBLIC[name]}")]
    shell(*create, "--server-key", PUBLIC["e"], *members)
    assert "not signed by the pinned root key" in shell.fails("federation", "install", "other.json", "--data", "d")
    add = ["federation", "roster", "add", "roster.json", "--root", "other.key", "--member", f"d={PUBLIC['d']}"]
    assert "not signed by this root key" in shell.fails(*add)
    assert "n_min 2 is below" in shell.fails(
        *create[:3], "x.json", *create[4:], "--server-key", PUBLIC["e"], *members, "--c-max", "1", "--n-min", "2"
    )


def test_a_used_port_and_a_second_server_are_told(shell: Shell) -> None:
    enrol(shell)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert "choose another --port" in shell.fails("serve", "--data", "d", "--port", port)
    program = [sys.executable, "-m", "fedddpm_aggregator.cli", "serve", "--data", "d", "--port", "0"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as first:
        assert first.stdout is not None
        assert "listening on http://127.0.0.1:" in first.stdout.readline()
        assert "another server uses d" in shell.fails("serve", "--data", "d", "--port", "0")
        first.terminate()
        assert first.wait(10) == 0


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now)
    builder = builder.not_valid_after(now + datetime.timedelta(hours=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    chain, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    chain.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, private


def test_serves_over_tls(shell: Shell, certificate: tuple[Path, Path]) -> None:
    enrol(shell)
    chain, private = certificate
    program = [sys.executable, "-m", "fedddpm_aggregator.cli", "serve", "--data", "d", "--port", "0"]
    program += ["--tls-cert", str(chain), "--tls-key", str(private)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        assert url.startswith("https://")
        trust = ssl.create_default_context(cafile=str(chain))
        assert httpx.get(f"{url}/healthz", verify=trust, trust_env=False).json() == {"status": "alive"}
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 0


def test_nothing_here_needs_torch() -> None:
    code = "import sys, fedddpm_aggregator.cli; sys.exit('torch' in sys.modules or 'fedddpm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
