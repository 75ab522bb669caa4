"""A small HTTP load balancer in a thread: every request goes to the next backend, whoever asks.

A backend that refuses the connection is passed over; when all do, or one dies in the middle of an exchange, the
client's connection is closed without an answer, and repeating is the client's part (as it is with real balancers, which
do not repeat a POST either). Bodies are passed on in pieces; heads may have 64 KiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self

MOST_HEAD_BYTES = 2**16
PIECE_BYTES = 2**16
Address = tuple[str, int]


class Balancer:
    """Round robin over ``backends`` (host, port); a context manager."""

    def __init__(self, backends: Iterable[Address]) -> None:
        self._backends = list(backends)
        self._turn = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._open: set[asyncio.Task[None]] = set()  # asyncio itself holds its tasks by weak references only
        self._server: asyncio.Server
        self.requests = 0
        self.unanswered = 0  # requests that no backend answered, or not to the end

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0, limit=MOST_HEAD_BYTES, backlog=1024)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        task = asyncio.create_task(self._answer(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One exchange; the connection is closed after it, so that the next request has its turn elsewhere."""
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                if not await self._exchange(head, reader, writer):
                    self.unanswered += 1
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _exchange(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        backend = await self._connect()
        if backend is None:
            return False
        up_reader, up_writer = backend
        try:
            lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
            up_writer.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
            await _pass_on(reader, up_writer, _content_length(lines))
            answer = await up_reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            expected = _content_length(answer.split(b"\r\n"))
            return await _pass_on(up_reader, writer, None) >= expected
        except (OSError, asyncio.IncompleteReadError):
            return False
        finally:
            up_writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to the next backend that takes one."""
        first = next(self._turn)
        for step in range(len(self._backends)):
            host, port = self._backends[(first + step) % len(self._backends)]
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(host, port, limit=MOST_HEAD_BYTES)
        return None


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int | None) -> int:
    """Pass on ``size`` bytes, or everything until the end (None); the number passed on."""
    passed = 0
    while size is None or passed < size:
        piece = await reader.read(PIECE_BYTES if size is None else min(PIECE_BYTES, size - passed))
        if not piece:
            break
        writer.write(piece)
        await writer.drain()
        passed += len(piece)
    await writer.drain()
    return passed


def _content_length(lines: Iterable[bytes]) -> int:
    for line in lines:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0
