"""Answers of the aggregator: bounded in memory and on disk, never unpacked, and of the kind that was asked for.

How much each kind can have follows from its model (``fedddpm_protocol.untrusted.bounds``), and no more of it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import ValidationError

from fedddpm.errors import CheckpointError, TransportError
from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.untrusted.bounds import Bound, bound_of
from fedddpm_protocol.wire.api import Problem
from fedddpm_protocol.wire.messages import Message

WORTH_WAITING = frozenset({408, 429, 500, 502, 503, 504, 507})
REPLY = TypeVar("REPLY", bound=Message)
_LONGEST_NUMBER = 16  # digits; what is longer is no size
_PROBLEM = bound_of(Problem)
BytesSoFar = Callable[[int, int], None]  # bytes so far, bytes in all


def parse(reply: type[REPLY], response: httpx.Response) -> REPLY:
    """The reply in a response; TransportError if it is none, or more than its kind can have."""
    try:
        if not bound_of(reply).holds(response.content):
            raise MalformedError(f"more than a {reply.__name__} can have")
        return reply.model_validate_json(response.content)
    except (ValidationError, MalformedError) as error:
        raise TransportError(
            f"{response.request.url.copy_with(query=None)} did not answer with a {reply.__name__}",
            "Check that aggregator_url is the address of a fedddpm aggregator of the same version",
        ) from error


def served(response: httpx.Response) -> bool:
    """Whether it says more than that the aggregator cannot serve."""
    return response.status_code not in WORTH_WAITING


def read_reply(stream: httpx.Response, pieces: Iterator[bytes], bound: Bound) -> httpx.Response:
    """The whole reply as it came: never unpacked, and not more than ``bound``; of an error, what a problem can have."""
    most = _PROBLEM.size if stream.is_error else bound.size
    content, packed = bytearray(), stream.headers.get("Content-Encoding", "identity") != "identity"
    for piece in pieces:
        content += piece
        if packed or len(content) > most:
            if stream.is_error:  # a proxy's page perhaps; its status says enough
                content.clear()
                break
            raise TransportError(
                f"{stream.request.url.path} sends a packed reply, or more than the {most} bytes it can have",
                "Check that aggregator_url is the address of a fedddpm aggregator, and what proxies do on the way",
            )
    headers = [(name, value) for name, value in stream.headers.multi_items() if name != "content-encoding"]
    return httpx.Response(stream.status_code, headers=headers, content=bytes(content), request=stream.request)


def write_stream(
    response: httpx.Response, pieces: Iterator[bytes], target: Path, have: int, most_bytes: int, on_bytes: BytesSoFar
) -> None:
    """Write a download after the ``have`` bytes of ``target``; TransportError if it has more than ``most_bytes``."""
    total = have + announced_bytes(response)
    try:
        _require_room(response, total, most_bytes)
        with target.open("r+b" if have else "wb") as file:
            file.seek(have)
            for piece in pieces:
                file.write(piece)
                have += len(piece)
                _require_room(response, have, most_bytes)
                on_bytes(have, total)
    except OSError as error:
        raise CheckpointError(
            f"{target} cannot be written ({error.strerror})", "Free some space and start again; nothing is lost"
        ) from error


def announced_bytes(response: httpx.Response) -> int:
    """What a response says that its content has; 0 where it says nothing that makes sense."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < _LONGEST_NUMBER else 0


def _require_room(response: httpx.Response, size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise TransportError(
            f"{response.request.url} sends more than the {most_bytes} bytes it can have",
            "Stop, and call the federation's coordinator before you go on",
        )
