"""What the user sees: one line for training, upload, download or waiting, and a line for each finished round.

On a terminal these are rich bars; elsewhere nothing is drawn and the notices go to the log ``fedddpm`` only.
"""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedddpm.connection import Outage
from fedddpm.trainer import Progress as Training

_LOG = logging.getLogger("fedddpm")


class Reporter:
    """Tells nobody but the log; a context manager, and the base of what draws."""

    def __init__(self) -> None:
        self._away = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def notice(self, text: str) -> None:
        """Something worth knowing happened."""
        _LOG.info(text)

    def warning(self, text: str) -> None:
        """Something needs the user's attention, but not now."""
        _LOG.warning(text)

    def waiting(self, text: str) -> None:
        """Nothing to do until somebody else acts."""

    def outage(self, outage: Outage | None) -> None:
        """The aggregator does not serve; None: it does again. Each is said once, the seconds are shown meanwhile."""
        if outage is None:
            self.notice("the aggregator answers again")
        elif not self._away:
            self.warning(f"the aggregator does not serve ({outage.reason}); waiting for it, nothing is lost")
        self._away = outage is not None
        if outage is not None:
            self.waiting(f"aggregator away for {outage.since_s:.0f} s, next try in {outage.retry_in_s:.0f} s")

    def training(self, round_: int, progress: Training) -> None:
        """One or some local steps were done."""

    def transfer(self, what: str, done: int, total: int) -> None:
        """Bytes of an upload or download."""


class TerminalReporter(Reporter):
    """Draws one live line on the terminal, with finished lines above it."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._console = console or Console(stderr=True)
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # lines printed meanwhile go above the bar, but never out of a pipe
        )
        self._task: TaskID | None = None
        self._what = ""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def notice(self, text: str) -> None:
        """Print a line above the bar."""
        super().notice(text)
        self._console.print(text, markup=False, highlight=False)

    def warning(self, text: str) -> None:
        """Print a yellow line above the bar."""
        super().warning(text)
        self._console.print(f"Warning: {text}", style="yellow", markup=False, highlight=False)

    def waiting(self, text: str) -> None:
        """Show a bar without an end."""
        self._show(text, None, None, "")

    def training(self, round_: int, progress: Training) -> None:
        """Show epochs and steps."""
        what = f"round {round_ + 1}: training, epoch {progress.epoch + 1} of {progress.epochs}"
        detail = f"loss {progress.loss:.4f}, {progress.images_per_s:.0f} images/s"
        self._show(what, progress.step, progress.steps_total, detail, same_bar=f"training {round_}")

    def transfer(self, what: str, done: int, total: int) -> None:
        """Show megabytes."""
        self._show(what, done, total or None, f"{done / 1e6:.1f} MB")

    def _show(self, text: str, done: int | None, total: int | None, detail: str, same_bar: str = "") -> None:
        what = same_bar or text
        if self._task is None or self._what != what:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task, self._what = self._bars.add_task(text, total=total, detail=detail), what
        self._bars.update(self._task, description=text, completed=done, total=total, detail=detail)


def make_reporter(show: bool | None) -> Reporter:
    """Bars when ``show``, none when not; None decides by whether a terminal is there."""
    return TerminalReporter() if (sys.stderr.isatty() if show is None else show) else Reporter()
