"""Real server processes with settings of their own, and a PostgreSQL that can be made to hang."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import uvicorn
from tests.aggregator.support.federations import Federation, ServerProcess

from fedddpm_aggregator.app import create_app
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.settings import Settings


class WatchedProcess(ServerProcess):
    """A server whose signals and settings a test chooses."""

    def __init__(self, federation: Federation, **settings: object) -> None:
        super().__init__(federation)
        self.variables = {f"FEDDDPM_AGGREGATOR_{name.upper()}": str(value) for name, value in settings.items()}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def terminate(self) -> None:
        """SIGTERM."""
        assert self._process is not None
        self._process.terminate()

    def wait(self, timeout_s: float = 60.0) -> int:
        """The exit status, once it has one."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=10, trust_env=False)

    def until(self, path: str, status: int, timeout_s: float = 30.0) -> httpx.Response:
        """The first response of ``path`` with this status."""
        deadline = time.monotonic() + timeout_s
        while True:
            response = self.get(path)
            if response.status_code == status:
                return response
            assert time.monotonic() < deadline, response.text
            time.sleep(0.1)


@contextlib.contextmanager
def served_over(ctx: Context, settings: Settings) -> Iterator[str]:
    """The application over an open context, served by a thread of this process; yields its URL."""
    config = uvicorn.Config(create_app(settings, ctx), port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def freeze(process: int) -> Callable[[], None]:
    """Stop a process with all its children; what is returned lets them go on."""
    frozen: list[int] = []
    waiting = [process]
    while waiting:
        pid = waiting.pop()
        os.kill(pid, signal.SIGSTOP)
        frozen.append(pid)
        waiting += _children(pid)

    def thaw() -> None:
        for pid in reversed(frozen):
            os.kill(pid, signal.SIGCONT)

    return thaw


def _children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found
