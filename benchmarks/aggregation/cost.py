"""One measurement in a process of its own: what to do, its CPU seconds by step, and how far its memory rose.

Only the standard library, because the peers' own environments import this too.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

_RESET_PEAK = "5"  # what Linux wants in clear_refs


@dataclass(frozen=True)
class Job:
    """What one process measures; every scheme reads the fields that concern it."""

    role: str  # "client": one institution's upload; "server": the sum of everybody's
    coordinates: int
    cohort: int  # institutions
    drops: int = 0  # of them fall silent before they upload
    bits: int = 32  # of the ring
    chunk: int = 2**18  # coordinates that travel together
    neighbours: int = 0  # with whom a client shares masks
    masks: int = 0  # for the bare loop
    vectors: int = 0  # for the bare loop: uploads that it adds first
    real_uploads: bool = False  # not random words in their stead: the opened mean can be checked

    @property
    def text(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def of_command_line(cls) -> Job:
        """The job that this process was started for."""
        return cls(**json.loads(sys.argv[1]))


class Stopwatch:
    """CPU seconds of this process, all threads, by step; a step inside another is not counted twice.

    ``kernel`` holds the operating system's share of them, which is mostly the handing out of fresh memory.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.kernel: dict[str, float] = {}
        self._open: list[str] = []
        self._since = self._kernel_since = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Everything in this block counts for ``name``."""
        self._book()
        self._open.append(name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def _book(self) -> None:
        now, kernel = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_stime
        if self._open:
            step = self._open[-1]
            self.seconds[step] = self.seconds.get(step, 0.0) + now - self._since
            self.kernel[step] = self.kernel.get(step, 0.0) + kernel - self._kernel_since
        self._since, self._kernel_since = now, kernel

    def kernel_s(self, steps: Iterable[str]) -> float:
        """The operating system's share of some steps."""
        return sum(self.kernel[step] for step in steps)


class PeakMemory:
    """Resident bytes above those at the start of the block, at their peak.

    What was freed before the block goes back to the system first, so that taking it again counts. Linux forgets an
    older peak on request; elsewhere a peak before the block hides what the block takes.
    """

    extra_bytes = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        with suppress(OSError, AttributeError):  # only the GNU library has it
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        self._before = _resident_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.extra_bytes = max(0, _resident_bytes("VmHWM") - self._before)


def _resident_bytes(field: str) -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def answer(work: Callable[[Job], dict[str, object]]) -> None:
    """Do the job on the command line and print what it cost as one line of JSON, the last one on stdout."""
    print(json.dumps(work(Job.of_command_line())))
