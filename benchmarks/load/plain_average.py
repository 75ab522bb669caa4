"""The peer of round_overhead.py: institutions post float32 vectors over HTTP and get their plain mean; prints JSON.

No masks, no signatures, no database: the least that any federated averaging over HTTP has to do.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.synchronize import Barrier
from threading import Condition

import httpx
import numpy as np


class Averaging(ThreadingHTTPServer):
    """Collects one vector from each institution, answers all with the mean."""

    request_queue_size = 64

    def __init__(self, institutions: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.institutions, self.vectors, self.mean, self.done = institutions, [], b"", 0
        self.changed = Condition()

    vectors: list[np.ndarray]

    def exchange(self, vector: np.ndarray) -> bytes:
        """Add a vector, wait for the others, return the mean."""
        with self.changed:
            self.vectors.append(vector)
            if len(self.vectors) == self.institutions:
                self.mean = np.mean(self.vectors, axis=0, dtype=np.float64).astype(np.float32).tobytes()
                self.vectors = []
                self.done += 1
                self.changed.notify_all()
            else:
                goal = self.done + 1
                self.changed.wait_for(lambda: self.done >= goal)
            return self.mean


class Handler(BaseHTTPRequestHandler):
    """One POST is one update."""

    protocol_version = "HTTP/1.1"
    server: Averaging

    def do_POST(self) -> None:
        """Take the body, answer with the mean."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        mean = self.server.exchange(np.frombuffer(body, np.float32))
        self.send_response(200)
        self.send_header("Content-Length", str(len(mean)))
        self.end_headers()
        self.wfile.write(mean)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def institution(url: str, coordinates: int, rounds: int, ready: Barrier, done: Barrier) -> None:
    """One process: send, receive, as often as there are rounds."""
    vector = (np.random.default_rng().standard_normal(coordinates) * 1e-4).astype(np.float32)
    with httpx.Client(timeout=60) as client:
        for _ in range(rounds):
            ready.wait()
            client.post(url, content=vector.tobytes())
            done.wait()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--institutions", "--coordinates", "--rounds"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ready, done = (context.Barrier(options.institutions + 1) for _ in range(2))
    server = Averaging(options.institutions)
    process = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
    process.start()
    url = f"http://127.0.0.1:{server.server_port}"
    arguments = (url, options.coordinates, options.rounds, ready, done)
    workers = [context.Process(target=institution, args=arguments, daemon=True) for _ in range(options.institutions)]
    for worker in workers:
        worker.start()
    times = []
    for _ in range(options.rounds):
        ready.wait()
        start = time.perf_counter()
        done.wait()
        times.append(time.perf_counter() - start)
    process.terminate()
    print(json.dumps(times))


if __name__ == "__main__":
    main()
