"""Opening sums on a Ray cluster: the same bytes as with threads, computed near the blob store.

The aggregator hands out stretches of chunks; workers read the masked chunks from the shared blob store themselves and
give back opened bytes. A task whose worker or node dies is done again by Ray, a lost result is computed again. What Ray
cannot do in the end (no cluster, a worker of another release, one that does not see the blobs, nothing for two minutes)
the threads of this process do: they go on at the chunk where Ray stopped, with a warning in the log, and Ray is asked
again a minute later. So a round never waits for a cluster, and damage is only what this process sees too.

What travels: names and sizes, and the seeds of the masks that stand in one sum, as bytes. Whoever reads the memory or
the object store of the cluster can remove those masks from the uploads of that session, if it has them: the cluster is
inside the aggregator's trust. Ray talks to its own processes in pickles; keep its ports closed to everybody else.

The address is what ``ray.init`` takes: host:port or "auto" on a machine that is a node of the cluster, ray://host:port
from elsewhere, or "local" for a cluster of this machine that ends with the server.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.reduction.ray_tasks import SumJob, release
from fedddpm_aggregator.reduction.threads import Look, WriteAt, open_chunks
from fedddpm_aggregator.vectors.stored_chunks import StoredChunks
from fedddpm_protocol.agreement.chunks import chunk_bytes, chunk_count, chunk_span, segment_digest
from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives import canonical, ring
from fedddpm_protocol.session.coordinator import MaskPlan

log = logging.getLogger(__name__)
PATIENCE_S = 120.0  # without a chunk, or until a cluster answers
RETRY_S = 60.0  # how long Ray is left alone after it failed
_PROGRAM = "fedddpm_aggregator.reduction.ray_driver"
_END_S = 10.0


class RayFailedError(Exception):
    """Ray did not do what it was asked; the message says why."""


class RayReducer:
    """Tasks on the cluster at ``address``, and threads of this process where that fails.

    Raises:
        OperatorError: ray is not installed.
    """

    def __init__(self, address: str, threads: int = 2, patience_s: float = PATIENCE_S) -> None:
        if importlib.util.find_spec("ray") is None:
            raise OperatorError("--ray needs Ray; install it with: pip install 'fedddpm-aggregator[ray]'")
        self._address, self._threads, self._patience_s = address, threads, patience_s
        self._lock = threading.Lock()
        self._idle: list[_Driver] = []
        self._busy: set[_Driver] = set()
        self._closed = threading.Event()
        self._not_before = 0.0
        self._greeting = threading.Thread(target=self._greet, name="ray", daemon=True)
        self._greeting.start()

    def open_segment(
        self,
        masks: MaskPlan,
        segment: SegmentSpec,
        chunk_coordinates: int,
        chunks: StoredChunks,
        write_at: WriteAt,
        look: Look,
    ) -> bytes:
        """As :func:`fedddpm_aggregator.reduction.threads.open_segment`, of ``chunks``; ``look`` sees them in order."""
        taken = _Taken(segment, chunk_coordinates, write_at, look)
        self._greeting.join()
        if time.monotonic() >= self._not_before:
            try:
                with self._driver() as driver:
                    for packed in driver.opened(_job(masks, segment, chunk_coordinates, chunks)):
                        taken.add(packed)
            except RayFailedError as error:
                self._give_up(error)
        rest = range(len(taken.digests), chunk_count(segment, chunk_coordinates))
        if rest:
            taken.digests += open_chunks(
                masks, segment, chunk_coordinates, rest, chunks.read, write_at, self._threads, look
            )
        return segment_digest(segment, chunk_coordinates, taken.digests)

    def close(self) -> None:
        """End the processes that talk to Ray; whoever waits for one of them goes on without it."""
        self._closed.set()
        with self._lock:
            drivers = self._idle
            for driver in self._busy:
                driver.end()
        for driver in drivers:
            driver.close()
        self._greeting.join()

    def _greet(self) -> None:
        """Connect before the first sum is there, so that an operator sees at once whether it works."""
        try:
            with self._driver() as driver:
                log.info("sums are opened on Ray", extra={"fields": {"address": self._address, "cpus": driver.cpus}})
        except RayFailedError as error:
            self._give_up(error)

    def _give_up(self, error: RayFailedError) -> None:
        self._not_before = time.monotonic() + RETRY_S
        if self._closed.is_set():
            return
        log.warning(
            "Ray failed; threads of this process open sums meanwhile",
            extra={"fields": {"address": self._address, "reason": str(error), "next_try_s": RETRY_S}},
        )

    @contextlib.contextmanager
    def _driver(self) -> Iterator[_Driver]:
        """A process that is connected, for one segment at a time; one that failed is not used again."""
        with self._lock:
            if self._closed.is_set():
                raise RayFailedError("the server shuts down")
            self._idle = [driver for driver in self._idle if driver.alive]
            driver = self._idle.pop() if self._idle else _Driver(self._address, self._patience_s)
            self._busy.add(driver)
        try:
            driver.require_connection()
            yield driver
        except BaseException:
            with self._lock:
                self._busy.remove(driver)
            driver.kill()
            raise
        with self._lock:
            self._busy.remove(driver)
            self._idle += [] if self._closed.is_set() else [driver]
        if self._closed.is_set():
            driver.close()


class _Driver:
    """One process of :mod:`fedddpm_aggregator.reduction.ray_driver`; it never imports what this process holds."""

    def __init__(self, address: str, patience_s: float) -> None:
        self._patience_s = patience_s
        self._pipe, other = multiprocessing.Pipe()
        self.cpus = 0
        with other:
            self._process = subprocess.Popen(  # noqa: S603  # this program and a number
                [sys.executable, "-m", _PROGRAM, str(other.fileno()), address],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # Ray's own words; what went wrong comes through the pipe
                pass_fds=(other.fileno(),),
                env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
                start_new_session=True,  # an interrupt at the terminal is the server's to handle
            )

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def require_connection(self) -> None:
        """Wait until the process has reached the cluster; RayFailedError."""
        if not self.cpus:
            self.cpus = int(self._received())

    def opened(self, job: bytes) -> Iterator[bytes]:
        """The opened, packed chunks in order; RayFailedError."""
        try:
            self._pipe.send_bytes(job)
        except OSError as error:
            raise RayFailedError("the process that talks to Ray ended") from error
        while packed := self._received():
            yield packed

    def _received(self) -> bytes:
        """What was sent next; empty after the last chunk."""
        try:
            if not self._pipe.poll(self._patience_s):
                raise RayFailedError(f"nothing came for {self._patience_s:g} seconds")
            frame = self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise RayFailedError("the process that talks to Ray ended, as it does when the cluster is gone") from error
        if frame[:1] == b"F":
            raise RayFailedError(frame[1:].decode(errors="replace"))
        return frame[1:]

    def close(self) -> None:
        """Let it end by itself."""
        self._pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def end(self) -> None:
        """End it while another thread waits for it."""
        self._process.kill()

    def kill(self) -> None:
        """End it at once; Ray drops its tasks."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()


class _Taken:
    """The chunks that came back so far."""

    def __init__(self, segment: SegmentSpec, chunk_coordinates: int, write_at: WriteAt, look: Look) -> None:
        self._segment, self._chunk_coordinates = segment, chunk_coordinates
        self._write_at, self._look = write_at, look
        self._full_bytes = chunk_bytes(segment, chunk_coordinates, 0)
        self.digests: list[bytes] = []

    def add(self, packed: bytes) -> None:
        """Look at the next chunk and write it; RayFailedError if it has another size."""
        index = len(self.digests)
        try:
            count = chunk_span(self._segment, self._chunk_coordinates, index)[1]
            words = ring.unpack(packed, self._segment.bits, count)
        except MalformedError as error:
            raise RayFailedError(f"what came back is no chunk {index}: {error}") from error
        self._look(words)
        self._write_at(index * self._full_bytes, packed)
        self.digests.append(hashlib.sha256(packed).digest())


def _job(masks: MaskPlan, segment: SegmentSpec, chunk_coordinates: int, chunks: StoredChunks) -> bytes:
    return canonical.encode(
        SumJob(
            release=release(),
            blobs=chunks.blobs.url,
            folder=chunks.folder,
            survivors=masks.survivors.ids,
            segment=segment,
            chunk_coordinates=chunk_coordinates,
            added=tuple(seed for seed, sign in masks.seeds if sign > 0),
            subtracted=tuple(seed for seed, sign in masks.seeds if sign < 0),
        )
    )
