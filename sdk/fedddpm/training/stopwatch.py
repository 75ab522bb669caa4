"""The time that a training takes."""

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Seconds of training, those before a resumption included, and images a second since it."""

    def __init__(self, seconds_before: float = 0.0) -> None:
        self._before, self._began, self._images = seconds_before, time.monotonic(), 0

    @property
    def seconds(self) -> float:
        """Spent so far."""
        return self._before + self._since

    @property
    def rate(self) -> float:
        """Counted images a second."""
        return self._images / max(self._since, 1e-9)

    def count(self, images: int) -> None:
        """So many images more were trained on."""
        self._images += images

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in here takes no time."""
        began = time.monotonic()
        yield
        self._began += time.monotonic() - began

    @property
    def _since(self) -> float:
        return time.monotonic() - self._began
