"""A server on a loopback port, in a thread of this process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn

from fedddpm_aggregator.app import create_app
from fedddpm_aggregator.errors import SelftestError
from fedddpm_aggregator.server.process import server_config
from fedddpm_aggregator.settings import Settings

START_S, STOP_S = 60.0, 10.0


@contextlib.contextmanager
def served_here(settings: Settings) -> Iterator[str]:
    """The application with these settings on a free port, until the block ends; its URL. SelftestError."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = server_config(create_app(settings), settings)
        config.timeout_graceful_shutdown = 1
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + START_S
        while not server.started and time.monotonic() < deadline and thread.is_alive():
            time.sleep(0.005)
        try:
            if not server.started:
                raise SelftestError("the server did not start; its last lines above say why")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(STOP_S)
