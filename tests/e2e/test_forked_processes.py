"""The forked processes of the tests are what started programs would be: output, exit codes, signals, a session."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import fork_server
from tests.support.fork_server import BIN, ForkedProcess, ForkServer, Process, start

AGGREGATOR = "fedddpm-aggregator"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ForkedProcess]:
    """A forked aggregator that listens, by a fork server of its own."""
    forks = ForkServer(AGGREGATOR)
    process = forked(forks, "init", "--data", str(tmp_path / "data"))
    assert process.wait(60) == 0
    process = forked(forks, "serve", "--data", str(tmp_path / "data"), "--port", "0", stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as stdout:
        assert "listening on" in stdout.readline()
        yield process
    forks.close()


def forked(forks: ForkServer, *arguments: str, stdout: int = subprocess.DEVNULL) -> ForkedProcess:
    return forks.fork([str(BIN / AGGREGATOR), *arguments], os.environ, stdout, subprocess.DEVNULL)


def ended(process: Process) -> tuple[int, str]:
    assert process.stdout is not None
    with process.stdout as stdout:
        return process.wait(60), stdout.read()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("fedddpm", ["--help"]),
        ("fedddpm", ["status"]),
        ("fedddpm", ["participate", "--config", "nowhere.toml"]),
        (AGGREGATOR, ["serve", "--data", "nowhere"]),
    ],
)
def test_they_say_and_end_as_the_installed_program(
    name: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = fork_server.as_at_the_start(os.environ) | {"COLUMNS": "100"}
    process = start(name, *arguments, environment=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert isinstance(process, ForkedProcess)
    done = subprocess.run(
        [BIN / name, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert ended(process) == (done.returncode, done.stdout)


def test_a_killed_one_is_gone_at_once(served: ForkedProcess) -> None:
    assert served.poll() is None
    assert os.getsid(served.pid) == served.pid != os.getsid(0)
    with pytest.raises(subprocess.TimeoutExpired):
        served.wait(0.01)
    served.kill()
    assert served.wait(20) == -signal.SIGKILL == served.returncode
    assert not Path(f"/proc/{served.pid}").exists()
    served.kill()  # nothing


def test_a_terminated_one_leaves_as_it_likes(served: ForkedProcess) -> None:
    served.terminate()
    assert served.wait(30) == 0


def test_what_imports_decide_starts_the_program(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit(7)")
    process = start(AGGREGATOR, "--help", environment=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert isinstance(process, subprocess.Popen)
    assert process.wait(60) != 0


def test_without_its_server_a_test_fails_and_says_why(served: ForkedProcess) -> None:
    forks = served._server
    forks._process.kill()
    with pytest.raises(RuntimeError, match=r"that forks fedddpm-aggregator for the tests has ended \(-9\)"):
        forked(forks, "--help")
    with pytest.raises(RuntimeError, match="has ended"):
        served.wait(30)
    os.kill(served.pid, signal.SIGKILL)


def test_nothing_is_forked_beside_a_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "thread_at_import.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setattr(fork_server, "_DECIDED", fork_server._DECIDED | {"PYTHONPATH": path})
    monkeypatch.setitem(fork_server.COMMANDS, AGGREGATOR, (*fork_server.COMMANDS[AGGREGATOR], "thread_at_import"))
    with pytest.raises(RuntimeError, match="an import has left 2 threads"):
        forked(ForkServer(AGGREGATOR), "--help")
