"""What a request passes on its way in: in which order, and that nothing reads a body before the guard has judged it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from fedddpm_aggregator.app import create_app
from fedddpm_aggregator.errors import NotEnrolledError
from fedddpm_aggregator.http.admission import Admission
from fedddpm_aggregator.http.guard import MAX_TARGET, Guard, Sizes
from fedddpm_aggregator.server.process import server_config
from fedddpm_aggregator.settings import Settings

LAYERS = [  # ours, the outermost first; libraries add some of theirs
    "LimitedConnection",  # sockets, slow clients
    "Observer",  # request id, counters, the line in the log
    "Guard",  # sizes of the head, Admission, then the body
]
SMALL = Sizes(max_message=100, max_chunk=100)


def passed(layer: object) -> Iterator[object]:
    """The layers of an application that was built, from the outside in."""
    while layer is not None:
        yield layer
        built = getattr(layer, "middleware_stack", None)
        layer = built or getattr(layer, "app", None) or getattr(layer, "_app", None)


def test_the_order_of_the_layers(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, trusted_proxies="10.0.0.0/8")
    app = create_app(settings)
    app.middleware_stack = app.build_middleware_stack()
    config = server_config(app, settings)
    config.load()
    layers = list(passed(config.loaded_app))
    kinds = [config.http_protocol_class, *map(type, layers)]
    assert [kind.__name__ for kind in kinds if kind.__module__.startswith("fedddpm_aggregator.")] == LAYERS
    guard = layers[kinds.index(Guard) - 1]
    assert isinstance(guard, Guard)
    assert isinstance(guard._admit, Admission)
    assert app.router in layers, "the chain was followed to its end"


def steps_of(scope: dict[str, object], body: bytes = b"x", *, admits: bool = True) -> list[str]:
    """What a guard does with a request, in order."""
    steps = []

    async def admit(_scope: Scope) -> str:
        steps.append("admission")
        if not admits:
            raise NotEnrolledError("nobody knows you")
        return "a"

    async def receive() -> Message:
        steps.append("body")
        return {"type": "http.request", "body": body, "more_body": False}

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        steps.append("application")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            steps.append(str(message["status"]))

    head = {"type": "http", "scheme": "http", "method": "POST", "path": "/v1/x", "query_string": b"", "headers": []}
    asyncio.run(Guard(app, SMALL, admit)({**head, **scope}, receive, send))
    return steps


def declaring(size: int) -> list[tuple[bytes, bytes]]:
    return [(b"content-length", str(size).encode())]


@pytest.mark.parametrize(
    ("scope", "body", "admits", "steps"),
    [
        ({}, b"x" * 100, True, ["admission", "body", "application"]),
        ({"query_string": b"x" * MAX_TARGET}, b"x", True, ["414"]),
        ({"headers": [(b"x-long", b"x" * 20_000)]}, b"x", True, ["431"]),
        ({}, b"x", False, ["admission", "403"]),
        ({"headers": declaring(101)}, b"x" * 101, True, ["admission", "413"]),
        ({"headers": declaring(1)}, b"x" * 101, True, ["admission", "body", "413"]),
    ],
)
def test_a_body_is_read_after_everything_that_the_head_tells(
    scope: dict[str, object], body: bytes, admits: bool, steps: list[str]
) -> None:
    assert steps_of(scope, body, admits=admits) == steps
