"""A TCP port in front of a Unix socket, as far away as a test wants, which counts how often its clients wait."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import make_url

PIECE_BYTES = 2**16


class SlowPipe:
    """What a client says arrives ``delay_s`` later, and so does the answer; a context manager."""

    def __init__(self, behind: Path, delay_s: float = 0.0) -> None:
        self._behind, self._delay_s = behind, delay_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server
        self.turns = 0  # times that a client said something after it had heard something

    @property
    def port(self) -> int:
        """Where clients connect to, on the loopback interface."""
        return int(self._server.sockets[0].getsockname()[1])

    def __enter__(self) -> SlowPipe:
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there, back = await asyncio.open_unix_connection(str(self._behind))
            heard = asyncio.Event()
            heard.set()
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(reader, back, heard, counts=True))
                    both.create_task(self._pump(there, writer, heard, counts=False))
            finally:
                await _closed(back)
        await _closed(writer)
        self._open.discard(task)

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, heard: asyncio.Event, *, counts: bool
    ) -> None:
        """Pass pieces on, each when it is due, in order; the end of them, too."""
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        async with asyncio.TaskGroup() as both:
            both.create_task(self._deliver(due, target))
            while True:
                try:
                    data = await source.read(PIECE_BYTES)
                except OSError:  # killed
                    data = b""
                self._count(heard, counts=counts)
                due.put_nowait((self._loop.time() + self._delay_s, data))
                if not data:
                    return

    async def _deliver(self, due: asyncio.Queue[tuple[float, bytes]], target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # who listened was killed
            while True:
                at, data = await due.get()
                await asyncio.sleep(at - self._loop.time())
                if not data:
                    break
                target.write(data)
                await target.drain()
        target.close()

    def _count(self, heard: asyncio.Event, *, counts: bool) -> None:
        if not counts:
            heard.set()
        elif heard.is_set():
            heard.clear()
            self.turns += 1


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.contextmanager
def far_away(url: str, delay_s: float = 0.0) -> Iterator[tuple[str, SlowPipe]]:
    """The URL of a database as it is reached through a pipe, and the pipe."""
    near = make_url(url)
    with SlowPipe(Path(str(near.query["host"])) / ".s.PGSQL.5432", delay_s) as pipe:
        through = near.set(host="127.0.0.1", port=pipe.port, query={})
        yield through.render_as_string(hide_password=False), pipe
