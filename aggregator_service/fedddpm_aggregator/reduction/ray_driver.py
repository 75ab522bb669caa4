"""The process that talks to Ray, started by :mod:`~fedddpm_aggregator.reduction.ray_cluster`; only this imports ray.

Ray ends the process that uses it when its cluster has been gone for a minute, and writes of its own to standard error.
The server must not end with it, hence a process of its own. Over a pair of sockets come jobs, and go opened chunks in
order, as plain bytes; the server's end closes when it is done or dead, and this process ends.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import ray
import ray.exceptions

from fedddpm_aggregator.reduction.ray_tasks import SumJob, open_stretch
from fedddpm_protocol.agreement.chunks import chunk_bytes, chunk_count
from fedddpm_protocol.primitives import canonical

READY, CHUNK, END, FAILED = b"R", b"C", b"E", b"F"  # first byte of what is sent
RETRIES = 5  # of a task whose worker or node died
STRETCH_BYTES = 4 * 2**20  # opened bytes of one task, so that few are lost with a worker
_LOOK_EVERY_S = 1.0


def main() -> None:
    """``python -m fedddpm_aggregator.reduction.ray_driver DESCRIPTOR ADDRESS``."""
    server, address = Connection(int(sys.argv[1])), sys.argv[2]
    try:
        _connect(address)
        server.send_bytes(READY + str(_cpus()).encode())
        while True:
            _serve(server, server.recv_bytes())
    except (EOFError, OSError):
        return  # the server's end is closed
    except Exception as error:  # noqa: BLE001  # Ray raises many kinds when a cluster cannot be used
        server.send_bytes(FAILED + _reason(error).encode())


def _connect(address: str) -> None:
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, configure_logging=False, **options)


def _cpus() -> int:
    return int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]


def _serve(server: Connection, job: bytes) -> None:
    try:
        for packed in _opened(server, job):
            server.send_bytes(CHUNK + packed)
        server.send_bytes(END)
    except ray.exceptions.RayError as error:
        server.send_bytes(FAILED + _reason(error).encode())


def _opened(server: Connection, job: bytes) -> Iterator[bytes]:
    """The opened chunks in order, with so many tasks in flight that every processor has one and another one waits."""
    task = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")(open_stretch)
    work, cpus, shared = canonical.decode(SumJob, job), _cpus(), ray.put(job)
    stretches, flying = _stretches(work, cpus), deque[Any]()
    while True:
        while len(flying) < 2 * cpus and (stretch := next(stretches, None)):
            flying.append(task.remote(shared, stretch.start, stretch.stop))
        if not flying:
            return
        first = flying.popleft()
        while not ray.wait([first], timeout=_LOOK_EVERY_S)[0]:
            if server.poll():  # nothing is sent meanwhile, so the other end is closed
                raise EOFError
        yield from ray.get(first)


def _stretches(work: SumJob, cpus: int) -> Iterator[range]:
    """Neighbouring chunks for each task: some for every processor, and never more than :data:`STRETCH_BYTES`."""
    chunks = chunk_count(work.segment, work.chunk_coordinates)
    most = max(1, STRETCH_BYTES // chunk_bytes(work.segment, work.chunk_coordinates, 0))
    step = min(most, -(-chunks // cpus))
    return (range(first, min(first + step, chunks)) for first in range(0, chunks, step))


def _reason(error: Exception) -> str:
    """One line, of what a worker raised rather than of its traceback."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__


if __name__ == "__main__":
    main()
