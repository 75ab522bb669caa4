"""The command line: one short message and an exit code for a user's mistake, never a trace."""

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedddpm.cli.app import app
from fedddpm.files.atomic import load_tensors
from fedddpm.model.initialization import seed_of
from fedddpm.model.model_files import read_architecture
from fedddpm.state.folder import RunPosition, StateFolder
from fedddpm.transport.traffic import Traffic
from fedddpm_protocol.agreement.model_metadata import INITIAL_SEED_KEY
from fedddpm_protocol.wire.messages import SignedDocument

PROGRAM = [sys.executable, "-c", "from fedddpm.cli.app import main; main()"]


@dataclass(frozen=True)
class Outcome:
    returncode: int
    stdout: str
    stderr: str


def fedddpm(*arguments, cwd):
    """Run the command in this process, for importing torch takes seconds."""
    with contextlib.chdir(cwd):
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def refused(result, code, message):
    assert result.returncode == code, result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr) < 600


@pytest.fixture
def site(tmp_path):
    assert fedddpm("keygen", "--id", "hospital-a", "--out", "a.key", cwd=tmp_path).returncode == 0
    (tmp_path / "site.toml").write_text(
        f'aggregator_url = "http://127.0.0.1:9"\nidentity = "a.key"\nfederation_root = "{"ab" * 32}"\n'
        'data = "images.npz"\nstate_dir = "state"\n[network]\npatience_s = 0\n'
    )
    np.savez(tmp_path / "images.npz", images=np.arange(512, dtype=np.uint16).astype(np.uint8).reshape(8, 8, 8))
    return tmp_path


def test_keygen_prints_what_may_be_told_and_nothing_else(tmp_path):
    result = fedddpm("keygen", "--id", "hospital-a", "--out", "a.key", cwd=tmp_path)
    content = json.loads((tmp_path / "a.key").read_text())
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    assert content["public_key"] in result.stdout
    assert re.search(r"([0-9a-f]{4}-){7}[0-9a-f]{4}", result.stdout)
    assert content["seed"] not in result.stdout + result.stderr
    refused(fedddpm("keygen", "--id", "hospital-a", "--out", "a.key", cwd=tmp_path), 2, "not overwritten")


def test_keygen_does_not_wait_for_torch(tmp_path):
    code = (
        "import sys\nfrom fedddpm.cli.app import app\n"
        "app(['keygen', '--id', 'a', '--out', 'a.key'], standalone_mode=False)\nassert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True).returncode == 0


def test_init_model_is_decided_by_its_seed(tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        arguments = ("--image-size", 8, "--preset", "tiny", "--seed", seed, "--out", f"{name}.safetensors")
        result = fedddpm("init-model", *arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "8x8x1" in result.stdout
    one, again, two = (load_tensors(tmp_path / f"{name}.safetensors")[0] for name in ("one", "again", "two"))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], two[name]) for name in one)
    assert read_architecture(tmp_path / "one.safetensors").preset == "tiny"
    seed = load_tensors(tmp_path / "two.safetensors")[1][INITIAL_SEED_KEY]
    assert f"seed: {seed}" in result.stdout
    assert bytes.fromhex(seed) == seed_of(2)
    refused(fedddpm("init-model", "--out", "one.safetensors", cwd=tmp_path), 2, "not overwritten")


def test_the_real_process_ends_with_the_code_and_no_trace(site):
    environment = {**os.environ, "COLUMNS": "200"}
    arguments = [*PROGRAM, "participate", "--config", "site.toml", "--data", "nowhere"]
    result = subprocess.run(arguments, cwd=site, env=environment, capture_output=True, text=True, timeout=60)
    refused(result, 2, "does not exist")


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_process_says_that_it_can_go_on(site, stop):
    arguments = [*PROGRAM, "participate", "--config", "site.toml", "--patience", "60"]

    def as_in_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # who runs in the background inherits that it is ignored

    with subprocess.Popen(
        arguments, cwd=site, stderr=subprocess.PIPE, text=True, preexec_fn=as_in_a_terminal
    ) as process:
        assert re.match(r"[-0-9]{10} [:0-9]{8} fedddpm .* on cpu, hospital-a \(key ", process.stderr.readline())
        assert re.match(r"[-0-9]{10} [:0-9]{8} hospital-a .* images to train on", process.stderr.readline())
        assert "does not serve" in process.stderr.readline()
        process.send_signal(stop)
        assert "Stopped. The same command goes on" in process.stderr.read()
    assert process.returncode == 130


def test_mistakes_in_settings_exit_with_2(site):
    refused(fedddpm("participate", cwd=site), 2, "aggregator_url.*missing")
    refused(fedddpm("participate", "--config", "none.toml", cwd=site), 2, "cannot be read")
    refused(fedddpm("participate", "--config", "site.toml", "--data", "nowhere", cwd=site), 2, "does not exist")
    refused(fedddpm("participate", "--config", "site.toml", "--identity", "x.key", cwd=site), 2, "keygen")
    refused(fedddpm("participate", "--config", "site.toml", "--federation-root", "xyz", cwd=site), 2, "public key")
    refused(fedddpm("participate", "--config", "site.toml", "--device", "tpu", cwd=site), 2, "device")
    (site / "a.key").chmod(0o644)
    refused(fedddpm("participate", "--config", "site.toml", cwd=site), 2, "chmod 600")


def test_the_variable_names_the_settings_and_an_option_wins(site, monkeypatch):
    monkeypatch.setenv("FEDDDPM_SITE_CONFIG", "site.toml")
    refused(fedddpm("participate", "--data", "nowhere", cwd=site), 2, "nowhere.*does not exist")
    assert fedddpm("status", cwd=site).returncode == 5, "no state yet"
    refused(fedddpm("participate", "--config", "none.toml", cwd=site), 2, "none.toml cannot be read")
    monkeypatch.setenv("FEDDDPM_SITE_CONFIG", "gone.toml")
    refused(fedddpm("participate", cwd=site), 2, "gone.toml cannot be read")


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"--data": "nowhere"}, 2, "does not exist"),
        ({"--identity": "x.key"}, 2, "keygen"),
        ({"--config": "none.toml"}, 2, "cannot be read"),
        ({"--patience": "0"}, 4, "nothing is lost"),
        ({"--metrics-port": "70000"}, 2, "metrics.port"),
    ],
)
def test_errors_are_lines_of_json_where_the_log_is(site, change, code, message):
    options = {"--config": "site.toml", "--log-format": "json", **change}
    result = fedddpm("participate", *(word for option in options.items() for word in option), cwd=site)
    assert result.returncode == code
    last = json.loads(result.stderr.splitlines()[-1])
    assert (last["level"], last["event"]) == ("error", "error")
    assert re.search(message, last["message"])
    assert result.stdout == ""


def test_an_unreachable_aggregator_exits_with_4(site):
    refused(fedddpm("participate", "--config", "site.toml", cwd=site), 4, "127.0.0.1:9.*nothing is lost")
    shown = fedddpm("status", "--config", "site.toml", cwd=site)
    assert shown.returncode == 4
    assert re.search(r"run: +none yet\naggregator: +not reachable \(.*127.0.0.1:9", shown.stdout)


def test_a_state_folder_in_use_exits_with_5(site):
    with StateFolder(site / "state", b"r" * 32, "hospital-a") as state:
        state.accept_roster(1, b"hash", SignedDocument(body=b"roster", signature=bytes(64)))
        refused(fedddpm("participate", "--config", "site.toml", cwd=site), 5, f"number {os.getpid()}")
    refused(fedddpm("participate", "--config", "site.toml", cwd=site), 5, "another federation")


def test_an_empty_folder_of_images_exits_with_2(site):
    (site / "empty").mkdir()
    refused(fedddpm("participate", "--config", "site.toml", "--data", "empty", cwd=site), 2, "no ")


def test_status_and_sample_read_a_folder_in_use(site):
    arguments = ("--image-size", 8, "--preset", "tiny", "--out", "state/model-run-1-2.safetensors")
    with StateFolder(site / "state", b"r" * 32, "hospital-a") as state:
        state.bind_member()
        refused(fedddpm("sample", "--state-dir", "state", "--out", "g.png", cwd=site), 5, "no network yet")
        assert fedddpm("init-model", *arguments, cwd=site).returncode == 0
        state.move_to(RunPosition("run-1", "UDEC", 2, b"", b"i" * 32, b"b" * 32, "model-run-1-2.safetensors"))
        shown = fedddpm("status", "--state-dir", "state", cwd=site)
        assert shown.returncode == 0, shown.stderr
        assert "hospital-a" in shown.stdout
        assert "run-1 (UDEC), at round 3" in shown.stdout
        drawn = fedddpm("sample", "--state-dir", "state", "--out", "g.png", "--count", 4, "--steps", 2, cwd=site)
    assert drawn.returncode == 0, drawn.stderr
    assert Path(drawn.stdout.strip()) == Path("g.png")
    assert (site / "g.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    refused(fedddpm("status", "--state-dir", "nowhere", cwd=site), 5, "no state")
    refused(fedddpm("sample", "--state-dir", "state", "--out", "no/g.png", cwd=site), 5, "mkdir -p no")


def test_status_shows_a_round_beside_naive_fedavg(site):
    """Rounds without an update of one's own do not count: FedAvg would have moved nothing in them either."""
    arguments = ("--image-size", 8, "--preset", "tiny", "--out", "state/model.safetensors")
    with StateFolder(site / "state", b"r" * 32, "hospital-a") as state:
        state.move_to(RunPosition("run-1", "UDEC", 3, b"", b"i" * 32, b"b" * 32, "model.safetensors"))
        state.add_traffic("run-1", 0, Traffic(parameters_up=117_873, bytes_up=200_000, bytes_down=300_000))
        state.add_traffic("run-1", 1, Traffic(parameters_up=117_873, bytes_up=400_000))
        state.add_traffic("run-1", 2, Traffic(bytes_down=100_000))
    lost = fedddpm("status", "--state-dir", "state", cwd=site)
    assert "FedAvg" not in lost.stdout  # nobody knows how large the network is
    assert fedddpm("init-model", *arguments, cwd=site).returncode == 0
    shown = fedddpm("status", "--state-dir", "state", cwd=site)
    # 489,061 parameters: 2 * 4 * 489,061 bytes; 0.3 MB up and 0.2 MB down are 12.8 % of them
    expected = (
        "on average a round: +0.30 MB up, 0.20 MB down \\(87.2 % less than FedAvg\\), which moves 3.91 MB in float32"
    )
    assert re.search(expected, shown.stdout), shown.stdout


def test_a_mistyped_root_key_can_be_corrected(site):
    with StateFolder(site / "state", b"t" * 32, "hospital-b"):
        pass  # nothing was accepted under it
    with StateFolder(site / "state", b"r" * 32, "hospital-a"):
        pass


def test_status_breaks_no_line(site):
    long = "command " * 40
    with StateFolder(site / "state", b"r" * 32, "hospital-a") as state:
        state.move_to(RunPosition("run-1", "UDEC", 2, b"", b"i" * 32, b"b" * 32, long))
    with contextlib.chdir(site):
        shown = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["status", "--state-dir", "state"])
    assert long in shown.stdout


@pytest.mark.parametrize("bars", [False, True])
def test_every_warning_is_said_once(site, bars):
    arguments = [*PROGRAM, "participate", "--config", "site.toml", "--patience", "0.3"]
    arguments.append("--progress" if bars else "--no-progress")
    result = subprocess.run(arguments, cwd=site, capture_output=True, text=True, timeout=60)
    assert result.returncode == 4
    assert result.stderr.count("does not serve (") == 1
