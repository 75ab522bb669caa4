"""Institutions train side by side: jobs on one process or on several, with progress from all of them.

A job's results lie in files; what comes back through the pipe is a few numbers or a stack of small images.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, Self, TypeVar

import torch

from fedddpm.compute.device import usable_cores
from fedddpm.errors import ConfigError, TrainingError

Job = TypeVar("Job")
Result = TypeVar("Result")
Tell = Callable[[float], None]  # the share of the job that is done, 0 to 1
OnProgress = Callable[[int, float], None]  # number of the job, its share

_TELL_EVERY_S = 0.2
_LOOK_EVERY_S = 0.1
_progress: multiprocessing.Queue[tuple[int, float]] | None = None  # of a worker process, set when it starts


class Workers(Protocol):
    """Runs jobs somewhere."""

    def map(
        self, function: Callable[[Job, Tell], Result], jobs: Sequence[Job], on_progress: OnProgress
    ) -> list[Result]:
        """``function`` of every job, in order; it must be a module's own function, and jobs must pickle."""

    def device(self, device: str) -> str:
        """Where a job computes, if ``device`` is where this process would."""


class LocalWorkers:
    """Processes of this machine; a context manager. One worker means this process, which then uses all cores.

    Raises:
        ConfigError: fewer than one worker.
    """

    def __init__(self, count: int = 1) -> None:
        if count < 1:
            raise ConfigError(f"{count} workers do nothing", "Use --workers 1 or more")
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        self._others = set(multiprocessing.active_children())
        if self.count > 1:
            context = multiprocessing.get_context("spawn")  # fork and torch's threads do not go together
            self._queue: multiprocessing.Queue[tuple[int, float]] = context.Queue()
            threads = max(1, usable_cores() // self.count)
            self._pool = ProcessPoolExecutor(
                self.count, context, initializer=_start, initargs=(self._queue, threads, os.getpid())
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - self._others:
            process.terminate()
        self._pool.shutdown(wait=True)
        self._queue.close()
        self._queue.cancel_join_thread()

    def map(
        self, function: Callable[[Job, Tell], Result], jobs: Sequence[Job], on_progress: OnProgress
    ) -> list[Result]:
        """``function`` of every job, in order; it must be a module's own function, and jobs must pickle.

        Raises:
            TrainingError: a worker process died; whatever a job raises.
        """
        if self._pool is None:
            return [function(job, teller(number, on_progress)) for number, job in enumerate(jobs)]
        futures = [self._pool.submit(_call, function, number, job) for number, job in enumerate(jobs)]
        try:
            self._follow(futures, on_progress)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise TrainingError(
                "a worker process ended without a word, as it does when memory runs out",
                "Use fewer --workers or a smaller batch; the same command goes on where it was",
            ) from error
        finally:
            for future in futures:
                future.cancel()

    def device(self, device: str) -> str:
        """The same."""
        return device

    def _follow(self, futures: Sequence[Future[Any]], on_progress: OnProgress) -> None:
        """Pass on what the workers tell until all are done or one has failed."""
        while not all(future.done() for future in futures):
            try:
                on_progress(*self._queue.get(timeout=_LOOK_EVERY_S))
            except queue.Empty:
                failed = next((future for future in futures if future.done() and future.exception()), None)
                if failed is not None:
                    failed.result()


def teller(number: int, on_progress: OnProgress) -> Tell:
    """Tells at most a few times a second, and the end always."""
    told = [0.0]

    def tell(share: float) -> None:
        now = time.monotonic()
        if share >= 1 or now - told[0] >= _TELL_EVERY_S:
            told[0] = now
            on_progress(number, share)

    return tell


def _start(progress: multiprocessing.Queue[tuple[int, float]], threads: int, parent: int) -> None:
    """First thing in a worker process."""
    global _progress
    _progress = progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets the same signal and ends its workers
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for jobs for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _call(function: Callable[[Any, Tell], Any], number: int, job: Any) -> Any:
    progress = _progress
    if progress is None:
        raise RuntimeError("this process was not started as a worker")
    return function(job, teller(number, lambda at, share: progress.put((at, share))))
