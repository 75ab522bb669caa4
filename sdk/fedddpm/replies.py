"""Answers of the aggregator: bounded in memory and on disk, never unpacked, and of the kind that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import ValidationError

from fedddpm.errors import CheckpointError, TransportError
from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.messages import Message

MOST_REPLY_BYTES = 32 * 2**20  # a page of results of 128 institutions has 8
WORTH_WAITING = frozenset({408, 429, 500, 502, 503, 504, 507})
REPLY = TypeVar("REPLY", bound=Message)
BytesSoFar = Callable[[int, int], None]  # bytes so far, bytes in all


def parse(reply: type[REPLY], response: httpx.Response) -> REPLY:
    """The reply in a response; TransportError if it is none."""
    try:
        return reply.model_validate_json(response.content)
    except (ValidationError, MalformedError) as error:
        raise TransportError(
            f"{response.request.url.copy_with(query=None)} did not answer with a {reply.__name__}",
            "Check that aggregator_url is the address of a fedddpm aggregator of the same version",
        ) from error


def served(response: httpx.Response) -> bool:
    """Whether it says more than that the aggregator cannot serve."""
    return response.status_code not in WORTH_WAITING


def read_reply(stream: httpx.Response, pieces: Iterator[bytes]) -> httpx.Response:
    """The whole reply as it came: never unpacked, and not more than memory can take."""
    content, packed = bytearray(), stream.headers.get("Content-Encoding", "identity") != "identity"
    for piece in pieces:
        content += piece
        if packed or len(content) > MOST_REPLY_BYTES:
            if stream.is_error:  # a proxy's page perhaps; its status says enough
                content.clear()
                break
            raise TransportError(
                f"{stream.request.url.path} sends a packed reply, or more than {MOST_REPLY_BYTES} bytes",
                "Check that aggregator_url is the address of a fedddpm aggregator, and what proxies do on the way",
            )
    headers = [(name, value) for name, value in stream.headers.multi_items() if name != "content-encoding"]
    return httpx.Response(stream.status_code, headers=headers, content=bytes(content), request=stream.request)


def write_stream(
    response: httpx.Response, pieces: Iterator[bytes], target: Path, have: int, most_bytes: int, on_bytes: BytesSoFar
) -> None:
    """Write a download after the ``have`` bytes of ``target``; TransportError if it has more than ``most_bytes``."""
    total = have + int(response.headers.get("Content-Length", "0"))
    try:
        with target.open("r+b" if have else "wb") as file:
            file.seek(have)
            for piece in pieces:
                file.write(piece)
                have += len(piece)
                if have > most_bytes:
                    raise TransportError(
                        f"{response.request.url} sends more than the {most_bytes} bytes it can have",
                        "Stop, and call the federation's coordinator before you go on",
                    )
                on_bytes(have, total)
    except OSError as error:
        raise CheckpointError(
            f"{target} cannot be written ({error.strerror})", "Free some space and start again; nothing is lost"
        ) from error
