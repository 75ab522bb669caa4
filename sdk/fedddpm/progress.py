"""What the user sees: one line for training, upload, download or waiting, and a line for each finished round.

On a terminal these are rich bars; elsewhere nothing is drawn and every event is one line of the log ``fedddpm``. As
any library, this package leaves it to the program where the log goes; the command writes it to stderr.
"""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedddpm.connection import Outage
from fedddpm.trainer import Progress as Training

_LOG = logging.getLogger("fedddpm")
_TELL_EVERY_S = 30.0  # of training


class Reporter:
    """Tells nobody but the log; a context manager, and the base of what draws."""

    def __init__(self) -> None:
        self._away = False
        self._waits_for = ""
        self._trains, self._told_at = -1, 0.0

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
        """Nothing to do until somebody else acts, or until a long step ends; said once for each text."""
        if text != self._waits_for:
            _LOG.info(text)
        self._waits_for = text

    def countdown(self, text: str) -> None:
        """How long the aggregator is away by now: for a screen, too much for a log."""

    def outage(self, outage: Outage | None) -> None:
        """The aggregator does not serve; None: it does again. Each is said once, the seconds are shown meanwhile."""
        if outage is None:
            self.notice("the aggregator answers again")
        elif not self._away:
            self.warning(f"the aggregator does not serve ({outage.reason}); waiting for it, nothing is lost")
        self._away = outage is not None
        if outage is not None:
            self.countdown(f"aggregator away for {outage.since_s:.0f} s, next try in {outage.retry_in_s:.0f} s")

    def training(self, round_: int, progress: Training) -> None:
        """One or some local steps were done; said every half a minute."""
        now = time.monotonic()
        if round_ != self._trains:
            self._trains, self._told_at = round_, now
        if now - self._told_at >= _TELL_EVERY_S:
            self._told_at = now
            _LOG.info(f"{_epoch(round_, progress)}, step {progress.step} of {progress.steps_total}, {_speed(progress)}")

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
        # Where nobody set up logging Python prints warnings itself: beside the bars that would be a second time.
        self._silence = logging.NullHandler()
        self._task: TaskID | None = None
        self._what = ""

    def __enter__(self) -> Self:
        _LOG.addHandler(self._silence)
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        _LOG.removeHandler(self._silence)

    def notice(self, text: str) -> None:
        """Print a line above the bar."""
        super().notice(text)
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warning(self, text: str) -> None:
        """Print a yellow line above the bar."""
        super().warning(text)
        self._console.print(f"Warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def waiting(self, text: str) -> None:
        """Show a bar without an end."""
        self._show(text, None, None, "")

    def countdown(self, text: str) -> None:
        """Show a bar without an end."""
        self._show(text, None, None, "")

    def training(self, round_: int, progress: Training) -> None:
        """Show epochs and steps."""
        what, bar = _epoch(round_, progress), f"training {round_}"
        self._show(what, progress.step, progress.steps_total, _speed(progress), same_bar=bar)

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


def draws_bars(show: bool | None) -> bool:
    """What ``show`` comes to; None decides by whether a terminal is there."""
    return sys.stderr.isatty() if show is None else show


def make_reporter(show: bool | None) -> Reporter:
    """Bars when ``show``, none when not; None decides by whether a terminal is there."""
    return TerminalReporter() if draws_bars(show) else Reporter()


def _epoch(round_: int, progress: Training) -> str:
    return f"round {round_ + 1}: training, epoch {progress.epoch + 1} of {progress.epochs}"


def _speed(progress: Training) -> str:
    return f"loss {progress.loss:.4f}, {progress.images_per_s:.0f} images/s"
