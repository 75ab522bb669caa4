"""The outermost layer: reads no more of a request than allowed, and turns whatever fails into a problem document."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedddpm_aggregator.problems import TooLargeError, problem_of


class Guard:
    """ASGI middleware. Bodies are buffered up to the limit, so that signatures are checked over whole ones."""

    def __init__(self, app: ASGIApp, max_message_bytes: int, max_chunk_bytes: int) -> None:
        self._app, self._max_message, self._max_chunk = app, max_message_bytes, max_chunk_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            body = await self._read(scope, receive)
            if body is not None:
                await self._app(scope, _replay(body, receive), watched_send)
        except Exception as error:
            if started:
                raise
            await problem_of(error)(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, None if the client went away; TooLargeError without reading on."""
        limit = self._max_chunk if "/chunks/" in scope["path"] else self._max_message
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > limit:
            raise TooLargeError(f"the request has {int(declared)} bytes, at most {limit} are read here")
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise TooLargeError(f"the request has more than {limit} bytes; that many are read here")
            if not message.get("more_body", False):
                return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    delivered = False

    async def once() -> Message:
        nonlocal delivered
        if delivered:
            return await receive()
        delivered = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once
