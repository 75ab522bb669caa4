"""Processes of the two commands that need no start-up: forked from one that has imported them already.

Importing takes an institution two seconds and more of a processor, and the tests start hundreds of them. A forked one
is a process as any other: it has its own id, session, environment and output, runs the command's entry point to the
end, and SIGKILL kills it. What imports cannot have decided before (see ``DECIDED_BY_IMPORTS``) is started as a program.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

BIN = Path(sys.executable).parent
PROGRAM = Path(__file__).with_name("forked_commands.py")
COMMANDS = {  # by name: the entry point of pyproject.toml, and what a run of it imports late
    "fedddpm": (
        "fedddpm.cli.app:main",
        "fedddpm.client",
        "torch._dynamo",
        "numpy.random",
        "httpcore",
        "encodings.idna",
    ),
    "fedddpm-aggregator": (
        "fedddpm_aggregator.__main__:main",
        "fedddpm_aggregator.cli.app",
        "fedddpm_aggregator.app",
        "uvicorn.lifespan.on",
        "uvicorn.loops.asyncio",
        "anyio._backends._asyncio",
        "encodings.idna",
    ),
}
_ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads of a library that is imported cannot be forked
SET_BY_LIBRARIES = ("TORCHINDUCTOR_CACHE_DIR", "CUDA_MODULE_LOADING")  # in this process, once they are used
DECIDED_BY_IMPORTS = ("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "LD_", "LC_", "LANG", "TZ", "COVERAGE_", "CUDA_", "TORCH")


class Process(Protocol):
    """What the tests use of a process, forked or started."""

    pid: int
    stdout: IO[str] | None

    @property
    def returncode(self) -> int | None:
        """How it ended, as far as somebody has looked."""

    def poll(self) -> int | None:
        """How it ended: an exit code, or a signal's number below zero; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """How it ended, once it has; subprocess.TimeoutExpired."""

    def send_signal(self, sig: int) -> None:
        """Nothing if it has ended."""

    def terminate(self) -> None:
        """SIGTERM."""

    def kill(self) -> None:
        """SIGKILL."""


def start(
    name: str,
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] | IO[str] = subprocess.DEVNULL,
    stderr: int | IO[bytes] | IO[str] = subprocess.DEVNULL,
) -> Process:
    """A process of the command ``name`` with ``arguments``; the environment is this process's by default.

    ``stdout`` may be subprocess.PIPE (then read as text) and ``stderr`` subprocess.STDOUT.
    """
    words = [str(BIN / name), *map(str, arguments)]
    values = dict(os.environ if environment is None else environment)
    if hasattr(os, "pidfd_open") and _decided(values) == _DECIDED:
        return _server(name).fork(words, values, stdout, stderr)
    return subprocess.Popen(words, env=values, stdout=stdout, stderr=stderr, text=True, start_new_session=True)


def run(
    name: str, *arguments: str | Path, environment: Mapping[str, str] | None = None, timeout_s: float = 90
) -> subprocess.CompletedProcess[str]:
    """A command to its end, with all that it wrote; subprocess.TimeoutExpired if that takes too long."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = start(name, *arguments, environment=environment, stdout=out, stderr=err)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess([name, *arguments], code, out.read(), err.read())


class ForkServer:
    """A process that has imported one command."""

    def __init__(self, name: str) -> None:
        self._name, self._lock = name, threading.Lock()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this process
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**19)
        changed = _decided(os.environ)
        with theirs:
            command = [sys.executable, "-P", str(PROGRAM), str(theirs.fileno()), *COMMANDS[name]]
            self._process = subprocess.Popen(
                command,
                env={name: value for name, value in os.environ.items() if name not in changed} | _ALONE | _DECIDED,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
            )
        atexit.register(self.close)

    def fork(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        stdout: int | IO[bytes] | IO[str],
        stderr: int | IO[bytes] | IO[str],
    ) -> ForkedProcess:
        """A child that runs the command; RuntimeError if this server has ended."""
        request = json.dumps({"words": words, "environment": dict(environment), "folder": str(Path.cwd())}).encode()
        with contextlib.ExitStack() as stack:
            nothing = stack.enter_context(Path(os.devnull).open("r+b")).fileno()
            ended, end = os.pipe()
            stack.callback(os.close, end)
            reading: IO[str] | None = None
            if stdout == subprocess.PIPE:
                readable, out = os.pipe()
                stack.callback(os.close, out)
                reading = os.fdopen(readable, encoding="utf-8")
            else:
                out = nothing if stdout == subprocess.DEVNULL else _descriptor(stdout)
            err = {subprocess.STDOUT: out, subprocess.DEVNULL: nothing}.get(stderr) if isinstance(stderr, int) else None
            files = [nothing, out, _descriptor(stderr) if err is None else err, end]
            with self._lock:
                try:
                    socket.send_fds(self._connection, [request], files)
                    process = self._connection.recv(64)
                except OSError:
                    process = b""
            if not process:
                os.close(ended)
                raise RuntimeError(self.obituary())
            return ForkedProcess(self, words, int(process), ended, reading)

    def obituary(self) -> str:
        """Why nothing can be had from here any more."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._log.seek(0)
        said = self._log.read()[-4000:].decode(errors="replace")
        return f"the process that forks {self._name} for the tests has ended ({self._process.poll()}):\n{said}"

    def close(self) -> None:
        """Let it end; its children go on."""
        self._connection.close()
        self._process.wait()
        self._log.close()


class ForkedProcess:
    """A child of a :class:`ForkServer`, with what the tests use of subprocess.Popen."""

    def __init__(self, server: ForkServer, words: Sequence[str], pid: int, ended: int, stdout: IO[str] | None) -> None:
        self.args, self.pid, self.stdout = words, pid, stdout
        self.returncode: int | None = None
        self._server, self._ended, self._lock = server, ended, threading.Lock()
        weakref.finalize(self, os.close, ended)

    def poll(self) -> int | None:
        """How it ended; None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """How it ended, once it has; subprocess.TimeoutExpired."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        """Nothing if it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout_s: float | None) -> int | None:
        if self.returncode is None:
            waiting = select.poll()
            waiting.register(self._ended, select.POLLIN)
            if waiting.poll(None if timeout_s is None else 1000 * timeout_s):
                with self._lock:
                    if self.returncode is None:
                        status = os.read(self._ended, 16)
                        if not status:
                            raise RuntimeError(self._server.obituary())
                        self.returncode = int(status)
        return self.returncode


@functools.cache
def _server(name: str) -> ForkServer:
    return ForkServer(name)


def as_at_the_start(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` with what imports decide by as it was when these tests began, whatever was set since."""
    return {name: value for name, value in environment.items() if name not in _decided(environment)} | _DECIDED


def _decided(environment: Mapping[str, str]) -> dict[str, str]:
    decided = (name for name in environment if name.startswith(DECIDED_BY_IMPORTS) and name not in SET_BY_LIBRARIES)
    return {name: environment[name] for name in decided}


def _descriptor(file: int | IO[bytes] | IO[str]) -> int:
    return file if isinstance(file, int) else file.fileno()


_DECIDED = _decided(os.environ)
