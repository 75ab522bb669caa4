"""``fedddpm-aggregator`` as an operator and a root use it; a mistake is one line, never a traceback."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import typer
from tests.aggregator.support.certificates import self_signed
from tests.aggregator.support.federations import ARCHITECTURE, MANIFESTS, identity_of, theta_0, to_safetensors
from typer.core import TyperGroup

from fedddpm_aggregator.cli import app
from fedddpm_aggregator.cli.options import opened, settings_of
from fedddpm_aggregator.cli.round_tables import console, print_rounds
from fedddpm_aggregator.service.administration.rosters import next_step
from fedddpm_aggregator.service.conduct import Conduct, Miss
from fedddpm_aggregator.service.history.run_report import RunReport
from fedddpm_aggregator.service.history.session_lines import SessionLine
from fedddpm_aggregator.service.history.traffic import RoundTraffic
from fedddpm_aggregator.service.suspicion import Suspect, Suspicion
from fedddpm_protocol.agreement.spec import LOSS_UNITS, WEIGHT_UNITS
from fedddpm_protocol.encoding.alarms import LOSS, Alarm
from fedddpm_protocol.primitives.keys import fingerprint

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
            app.main()
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
    release = ["--base", "ab" * 32, "--part", "decoder", "--old", "a, b, c,d", "--new", "b,c,d"]
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


def test_rosters_that_could_not_be_meant(shell: Shell) -> None:
    server = enrol(shell)
    create = ["federation", "roster", "create", "new.json", "--root", "root.key", "--federation", "north"]
    two = [word for name in "ab" for word in ("--member", f"{name}={PUBLIC[name]}")]
    assert "2 members are fewer than --n-min 3" in shell.fails(*create, "--server-key", server, *two)
    assert not Path("new.json").exists()
    change = ["roster.json", "--root", "root.key"]
    add = ["federation", "roster", "add", *change, "--member"]
    assert "'d:12' must be ID=PUBHEX" in shell.fails(*add, "d:12")
    assert "--member 'd' must be ID=PUBHEX: '12' is not 64 hex digits" in shell.fails(*add, "d=12")
    release = ["federation", "roster", "release", *change, "--base", "ab" * 32, "--old", "a,b,gone"]
    assert "one of bottleneck, bottleneck-decoder, decoder" in shell.fails(
        *release, "--part", "decodr", "--new", "a,b,c"
    )
    assert "--new names d, e, not in roster version 1" in shell.fails(*release, "--part", "full", "--new", "a,d,e")
    assert "roster version 1" in shell("federation", "roster", "show", "roster.json")
    assert "2 members are fewer than n_min 3" in shell("federation", "roster", "remove", *change, "--member", "a")


def test_a_wrong_file_as_root_key_is_told_from_the_right_one(shell: Shell) -> None:
    enrol(shell)
    add = ["federation", "roster", "add", "roster.json", "--member", f"d={PUBLIC['d']}", "--root"]
    wanted = "expected is the federation's private root key"
    assert f"root.pub is a public key (64 hex digits); {wanted}" in shell.fails(*add, "root.pub")
    Path("a.key").write_text(json.dumps({"format": "fedddpm-identity-1", "id": "a"}))
    assert f"a.key is an institution's identity (made by fedddpm keygen); {wanted}" in shell.fails(*add, "a.key")
    assert f"the aggregator's own private key (server.key, made by init); {wanted}" in shell.fails(*add, "d/server.key")
    assert f"missing does not exist; {wanted}" in shell.fails(*add, "missing")


@pytest.mark.parametrize("command", [["serve"], ["rounds"], ["federation", "end-run"]], ids=" ".join)
def test_before_init_every_command_points_to_it(shell: Shell, command: list[str]) -> None:
    for path in ("d", "empty"):
        Path("empty").mkdir(exist_ok=True)
        assert f"run: fedddpm-aggregator init --data {path}" in shell.fails(*command, "--data", path)
    assert list(Path("empty").iterdir()) == []


def test_init_tightens_its_own_folder_only(shell: Shell) -> None:
    for name in ("d", "shared"):
        Path(name).mkdir(mode=0o755)
    Path("shared/note").write_text("somebody else's")
    for name in ("d", "shared"):
        shell("init", "--data", name)
    assert Path("d").stat().st_mode & 0o777 == 0o700
    assert Path("shared").stat().st_mode & 0o777 == 0o755
    Path("d").chmod(0o750)
    shell("init", "--data", "d")
    assert Path("d").stat().st_mode & 0o777 == 0o700


def test_every_option_of_a_run_is_explained(shell: Shell) -> None:
    group = typer.main.get_command(app.app)
    assert isinstance(group, TyperGroup)
    group = group.commands["federation"]
    assert isinstance(group, TyperGroup)
    for name in ("install", "sign-run", "start-run"):
        unexplained = [option.name for option in group.commands[name].params if not getattr(option, "help", None)]
        assert unexplained == []
    assert "The aggregator of a federation" in shell("--help")


def test_the_server_says_what_is_left_to_do(shell: Shell) -> None:
    shell("init", "--data", "d")
    said = []
    settings = settings_of(Path("d"), None)
    with opened(settings) as ctx:
        said.append(next_step(ctx))
    shutil.rmtree("d")
    enrol(shell)
    with opened(settings) as ctx:
        said.append(next_step(ctx))
    shell(*START, "--method", "udec", "--initial-model", theta())
    with opened(settings) as ctx:
        said.append(next_step(ctx))
    assert "init --data DIR --root-key" in str(said[0])
    assert "federation sign-run" in str(said[1])
    assert said[2] is None


def test_the_rounds_table_has_room_without_a_terminal(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tuple(f"hospital-{name}" for name in "abcdef")
    why = "2 of 3 needed UNMASK answers came; not heard of: hospital-f " * 4
    sums = (6 * WEIGHT_UNITS, 3 * LOSS_UNITS, 2 * LOSS_UNITS)
    done = SessionLine(
        run="run-1",
        method="USPLIT",
        round=0,
        attempt=1,
        part="bottleneck",
        phase="done",
        joined=names,
        cohort=names,
        survivors=names,
        sums=sums,
        reason=None,
        verdicts=(),
        base_model="00" * 32,
        model=None,
        bits=16,
        clip_norm=0.012345678,
        upload_bytes=0,
        opened_bytes=0,
    )
    traffic = [RoundTraffic(index, (16, 32), 123_456_789, 12_345_678_901, 1_234_567_890_123) for index in range(2)]
    failed = dataclasses.replace(done, round=1, part="decoder", phase="failed", sums=(), reason=why)
    monkeypatch.delenv("COLUMNS")
    alarm = Alarm(LOSS, 1, "the mean held-out loss became worse")
    late = Conduct(names[0], (Miss(0, 0, "join"), Miss(0, 1, "shares"), Miss(1, 0, "upload")), ())
    among = Suspicion(2, (0, 1), 6, tuple(Suspect(name, 2, 0.25) for name in names[:2]), ())
    print_rounds(RunReport([done, failed], traffic, [alarm], [late], among), console())
    wide = capsys.readouterr().out
    assert f"6 of 6: {', '.join(names)}" in wide
    assert f"round 2, attempt 2, decoder: {why}" in wide
    assert "alarm after round 2: the mean held-out loss became worse" in wide
    assert f"{names[0]} was late or silent in 3 of the last 5 attempts (round 1, attempt 1: did not join" in wide
    assert f"in 2 draws (rounds 1, 2); in all of them: {', '.join(names[:2])}, 2 of 6 members" in wide
    monkeypatch.setenv("COLUMNS", "80")
    print_rounds(RunReport([done], traffic, [], [], None), console())
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 80
    assert "weight" in narrow
    assert "0.0123" in narrow  # clip norm
    assert "16, 32 bits" in narrow
    assert "1.2 TB" in narrow
    assert "…" not in narrow
    assert all(name in narrow for name in names)


def test_rings_that_do_not_exist_are_refused(shell: Shell) -> None:
    enrol(shell)
    start = [*START, "--method", "udec", "--initial-model", theta()]
    assert "--bits 5 is no ring that values can travel in; choose one of 4, 6, 8" in shell.fails(*start, "--bits", "5")
    assert "--first-bits 33 is no ring" in shell.fails(*start, "--first-bits", "33")
    assert "--first-bits 8 is narrower" in shell.fails(*start, "--bits", "12", "--first-bits", "8")
    assert not Path("d/blobs/models").exists()  # nothing was stored
    assert "run run-1 starts" in shell(*start, "--bits", "8", "--first-bits", "32")


def test_mistakes_are_one_line(shell: Shell) -> None:
    assert "run: fedddpm-aggregator init" in shell.fails("rounds", "--data", "nowhere")
    assert "64 hex digits" in shell.fails("init", "--data", "d", "--root-key", "xyz")
    shell("init", "--data", "d")
    start = [*START, "--method", "UDEC", "--initial-model", theta()]
    assert "no root.key lies in d or beside it. Let the root sign the run" in shell.fails(*start)
    shell("federation", "root-keygen", "--out", "root.key")
    assert "no roster is installed" in shell.fails(*start)
    Path("junk").write_text("junk")
    assert "junk is no signed roster or charter" in shell.fails("federation", "install", "junk", "--data", "d")
    Path("junk").chmod(0o600)
    assert "junk is not a key file" in shell.fails(
        "federation", "roster", "add", "junk", "--root", "junk", "--member", "a=b"
    )
    assert "belong together" in shell.fails("serve", "--data", "d", "--tls-cert", "cert.pem")
    tls = ["serve", "--data", "d", "--port", "0", "--tls-cert", "junk", "--tls-key"]
    assert "--tls-key key.pem cannot be read: No such file" in shell.fails(*tls, "key.pem")
    assert "junk and junk are no certificate chain and its private key in PEM" in shell.fails(*tls, "junk")
    assert "there is no run" in shell.fails("federation", "end-run", "--data", "d")
    bad_url = ["--database-url", "postgresql://nobody@/none?host=/nonexistent"]
    assert "the database cannot be used" in shell.fails("rounds", "--data", "d", *bad_url)


def test_the_root_key_is_pinned_for_good(shell: Shell) -> None:
    enrol(shell)
    pinned = fingerprint(bytes.fromhex(Path("root.pub").read_text()))
    refusal = shell.fails("init", "--data", "d", "--root-key", PUBLIC["a"])
    assert "never changes its root key" in refusal
    assert pinned in refusal
    assert f"pinned root key    {pinned}" in shell(
        "init", "--data", "d", "--root-key", Path("root.pub").read_text().strip()
    )
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
    program = [sys.executable, "-m", "fedddpm_aggregator", "serve", "--data", "d", "--port", "0"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as first:
        assert first.stdout is not None
        assert "listening on http://127.0.0.1:" in first.stdout.readline()
        assert "another server uses d" in shell.fails("serve", "--data", "d", "--port", "0")
        first.terminate()
        assert first.wait(10) == 0


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return self_signed(tmp_path)


def test_serves_over_tls(shell: Shell, certificate: tuple[Path, Path]) -> None:
    enrol(shell)
    chain, private = certificate
    program = [sys.executable, "-m", "fedddpm_aggregator", "serve", "--data", "d", "--port", "0"]
    program += ["--tls-cert", str(chain), "--tls-key", str(private)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        assert url.startswith("https://")
        trust = ssl.create_default_context(cafile=str(chain))
        answer = httpx.get(f"{url}/healthz", verify=trust, trust_env=False)
        assert answer.json() == {"status": "alive"}
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 0


def test_nothing_here_needs_torch() -> None:
    code = "import sys, fedddpm_aggregator.cli.app; sys.exit('torch' in sys.modules or 'fedddpm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
