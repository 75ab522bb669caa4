"""The peer of service_load.py: the server of plain_average.py, and its institutions as threads of this process.

No masks, no signatures, no database: the least that any federated averaging over HTTP has to do.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from http.client import HTTPConnection
from typing import Any

import numpy as np
from benchmarks.load.plain_average import Averaging


def plain_average(institutions: int, coordinates: int, rounds: int) -> dict[str, Any]:
    """Seconds from "all updates are ready" to the last mean received, for each round."""
    server = Averaging(institutions)
    process = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
    process.start()
    vector = (np.random.default_rng().standard_normal(coordinates) * 1e-4).astype(np.float32).tobytes()
    gate = threading.Barrier(institutions + 1)

    def institution() -> None:
        line = HTTPConnection("127.0.0.1", server.server_port, timeout=120)
        for _ in range(rounds):
            gate.wait()
            line.request("POST", "/", vector)
            line.getresponse().read()
            gate.wait()
        line.close()

    threads = [threading.Thread(target=institution, daemon=True) for _ in range(institutions)]
    for thread in threads:
        thread.start()
    seconds = []
    for _ in range(rounds):
        gate.wait()
        started = time.perf_counter()
        gate.wait()
        seconds.append(time.perf_counter() - started)
    for thread in threads:
        thread.join()
    process.terminate()
    process.join()
    server.server_close()
    return {"institutions": institutions, "coordinates": coordinates, "s": seconds}
