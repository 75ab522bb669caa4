"""The layer below the observer: reads no more of a request than allowed, and turns what fails into a problem document.

Heads of requests are checked and admitted before their bodies are read, bodies are read while all of them together fit
a budget, and every response gets the headers that browsers protect people by. No layer above it reads a body.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedddpm_aggregator.errors import (
    HeadTooLargeError,
    TargetTooLongError,
    TooLargeError,
    TooManyRequestsError,
    UnavailableError,
)
from fedddpm_aggregator.http.problems import problem_of
from fedddpm_aggregator.settings import Settings

MIB = 2**20
_SHARES = 8  # identities that can fill the budget
SMALL_BODY = 4096  # bytes of a body that nobody has signed
MAX_TARGET = 2048  # bytes of path and query
_LONGEST_NUMBER = 16  # digits of a length
MAX_HEADERS, MAX_HEADER_BYTES = 100, 16 * 2**10
SECURE_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
HSTS = "max-age=31536000"


@dataclass(frozen=True)
class Sizes:
    """What is read of requests: bytes of a JSON message, of a chunk, and of all bodies at one time."""

    max_message: int
    max_chunk: int
    budget: int = 64 * MIB
    budget_wait_s: float = 10.0


def sizes_of(settings: Settings) -> Sizes:
    """The sizes that an operator has set."""
    return Sizes(settings.max_message_bytes, settings.max_chunk_bytes, settings.max_buffered_bytes)


class Budget:
    """Bytes of bodies that may be in memory together. Who finds no room waits for some, but not for long.

    One identity has an eighth of it, or one body: a member that sends many bodies slowly keeps nobody else out.
    """

    def __init__(self, size: int, wait_s: float) -> None:
        self._free = self._size = size
        self._wait_s = wait_s
        self._changed = asyncio.Condition()
        self._held: Counter[str] = Counter()  # by identity, also what waits

    @contextlib.asynccontextmanager
    async def of(self, size: int, who: str = "") -> AsyncIterator[None]:
        """Room for ``size`` bytes of an identity, nobody's by default; UnavailableError if there is none for too long.

        Raises TooManyRequestsError while other bodies of the identity take its share.
        """
        size = min(size, self._size)
        try:
            with self._share_of(who, size):
                if size:
                    await self._take(size)
                try:
                    yield
                finally:
                    self._free += size
        finally:
            if size:
                async with self._changed:
                    self._changed.notify_all()

    @contextlib.contextmanager
    def _share_of(self, who: str, size: int) -> Iterator[None]:
        if not who or not size:
            yield
            return
        if self._held[who] and self._held[who] + size > self._size // _SHARES:
            raise TooManyRequestsError(f"{who!r} is sending other bodies; wait until they are there", 1)
        self._held[who] += size
        try:
            yield
        finally:
            self._held[who] -= size
            if not self._held[who]:
                del self._held[who]

    async def _take(self, size: int) -> None:
        try:
            async with asyncio.timeout(self._wait_s), self._changed:
                await self._changed.wait_for(lambda: self._free >= size)
                self._free -= size
        except TimeoutError:
            raise UnavailableError("too many uploads at once; try again in a few seconds") from None


class Guard:
    """ASGI middleware. Bodies are buffered up to the limit, so that digests are checked over whole ones.

    ``admit`` refuses a request by its head, or tells who signed it; empty for nobody.
    """

    def __init__(self, app: ASGIApp, sizes: Sizes, admit: Callable[[Scope], Awaitable[str]] | None = None) -> None:
        self._app, self._sizes, self._admit = app, sizes, admit
        self._budget = Budget(sizes.budget, sizes.budget_wait_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                _secure(scope, MutableHeaders(scope=message))
            await send(message)

        try:
            _check_head(scope)
            who = await self._admit(scope) if self._admit is not None else ""
            async with self._budget.of(self._body_size(scope), who):
                body = await self._read(scope, receive)
                if body is not None:
                    await self._app(scope, _replay(body, receive), watched_send)
        except Exception as error:
            if started:
                raise
            await problem_of(error)(scope, receive, watched_send)

    def _body_size(self, scope: Scope) -> int:
        """Bytes to make room for: those that the head tells, the most if it does not; TooLargeError."""
        limit = self._limit(scope)
        declared = _header(scope, b"content-length")
        if _header(scope, b"transfer-encoding") is not None:
            return limit  # also beside a length, which counts for nothing then
        if declared is None or not declared.isdigit():
            return 0
        if len(declared) > _LONGEST_NUMBER or int(declared) > limit:
            raise TooLargeError(f"the request has {declared.decode()} bytes, at most {limit} are read here")
        return int(declared)

    def _limit(self, scope: Scope) -> int:
        if "/chunks/" in scope["path"]:
            return self._sizes.max_chunk
        return self._sizes.max_message if scope["path"].startswith("/v1/") else min(SMALL_BODY, self._sizes.max_message)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, None if the client went away; TooLargeError without reading on."""
        limit = self._limit(scope)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > limit:
                raise TooLargeError(f"the request has more than {limit} bytes; that many are read here")
            if not message.get("more_body", False):
                return bytes(body)


def _check_head(scope: Scope) -> None:
    target = len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"])
    if target > MAX_TARGET:
        raise TargetTooLongError(f"path and query have {target} bytes, at most {MAX_TARGET} are read")
    headers = scope["headers"]
    size = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise HeadTooLargeError(
            f"{len(headers)} headers with {size} bytes came, at most {MAX_HEADERS} with {MAX_HEADER_BYTES} are read"
        )


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == wanted), None)


def _secure(scope: Scope, headers: MutableHeaders) -> None:
    for name, value in SECURE_HEADERS.items():
        headers.setdefault(name, value)
    if scope["scheme"] == "https":
        headers.setdefault("strict-transport-security", HSTS)


def _replay(body: bytes, receive: Receive) -> Receive:
    delivered = False

    async def once() -> Message:
        nonlocal delivered
        if delivered:
            return await receive()
        delivered = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once
