"""What the user sees: one line for training, upload, download or waiting, and a line for each finished round.

On a terminal these are rich bars; elsewhere nothing is drawn and every event is one line of the log ``fedddpm``. As
any library, this package leaves it to the program where the log goes; the command writes it to stderr.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedddpm.monitoring.terminal import PlainConsole
from fedddpm.monitoring.vitals import Activity, LiveVitals, Work
from fedddpm.training.settings import Progress as Training
from fedddpm.transport.connection import Outage
from fedddpm.transport.traffic import Traffic
from fedddpm_protocol.untrusted.plain_text import plain, plain_values

_LOG = logging.getLogger("fedddpm")
_TELL_EVERY_S = 30.0  # of training, and of others arriving one by one
Fields = Mapping[str, object]


class Reporter:
    """The one that everything is told to: keeps ``vitals`` up to date and writes the log.

    A context manager, and the base of what draws. Each line of the log is a record with ``event`` and ``fields`` beside
    its text; rounds and attempts count from 0 there.
    """

    def __init__(self, vitals: LiveVitals | None = None) -> None:
        self.vitals = vitals or LiveVitals()
        self._away = False
        self._about: dict[str, object] = {}
        self._waits_for, self._waits_key, self._waits_said_at = "", "", 0.0
        self._trains, self._told_at = -1, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def at(self, run: str, round_: int, attempt: int) -> None:
        """What is told from now on is about this attempt."""
        self._about = {"run": run, "round": round_, "attempt": attempt}
        self.vitals.at(round_, attempt)

    def notice(self, text: str, event: str = "notice", fields: Fields | None = None) -> None:
        """Something worth knowing happened."""
        self.vitals.beat()
        self._log(logging.INFO, text, event, fields)

    def show(self, text: str) -> None:
        """Something that the log has already, for a screen."""

    def warning(self, text: str, event: str = "warning") -> None:
        """Something needs the user's attention, but not now."""
        self.vitals.beat()
        self._log(logging.WARNING, text, event)

    def waiting(self, text: str, activity: Activity | None = None, key: str = "") -> None:
        """Nothing to do until somebody else acts, or until a long step ends; said once for each text.

        Texts of one ``key`` differ only in how far it is: then half a minute lies between two lines.
        """
        self.vitals.beat() if activity is None else self.vitals.doing(activity)
        now, same = time.monotonic(), bool(key) and key == self._waits_key
        if text != self._waits_for and not (same and now - self._waits_said_at < _TELL_EVERY_S):
            self._log(logging.INFO, text, activity or "waiting")
            self._waits_for, self._waits_key, self._waits_said_at = text, key, now

    def countdown(self, text: str) -> None:
        """How long the aggregator is away by now: for a screen, too much for a log."""
        self.vitals.beat()

    def outage(self, outage: Outage | None) -> None:
        """The aggregator does not serve; None: it does again. Each is said once, the seconds are shown meanwhile."""
        if outage is None:
            self.notice("the aggregator answers again", "aggregator-back")
        elif not self._away:
            text = f"the aggregator does not serve ({outage.reason}); waiting for it, nothing is lost"
            self.warning(text, "aggregator-away")
        self._away = outage is not None
        if outage is not None:
            self.vitals.away()
            self.countdown(f"aggregator away for {outage.since_s:.0f} s, next try in {outage.retry_in_s:.0f} s")

    def heard(self) -> None:
        """A piece of an answer came: a quiet poll is no silence."""
        self.vitals.heard()

    def moved(self, traffic: Traffic, served: bool) -> None:
        """A request was answered; ``served``: by more than that it cannot be served."""
        self.vitals.moved(traffic.bytes_up, traffic.bytes_down, served=served)

    def training(self, round_: int, progress: Training) -> None:
        """One or some local steps were done; said every half a minute."""
        self.vitals.stepped(progress.step, progress.steps_total, progress.loss, progress.images_per_s)
        now = time.monotonic()
        if round_ != self._trains:
            self._trains, self._told_at = round_, now
        if now - self._told_at >= _TELL_EVERY_S:
            self._told_at = now
            text = f"{_epoch(round_, progress)}, step {progress.step} of {progress.steps_total}, {_speed(progress)}"
            names = ("step", "steps_total", "loss", "images_per_s")
            self._log(logging.INFO, text, Activity.TRAINING, {name: getattr(progress, name) for name in names})

    def reached(self, activity: Activity, text: str, fields: Fields) -> None:
        """A part of the attempt came this far."""
        self.vitals.doing(activity)
        self.notice(text, activity, fields)

    def trained(self, text: str, loss_before: float, loss_after: float, fields: Fields) -> None:
        """A training ended, or its outcome was found in the state folder."""
        self.vitals.trained(loss_before, loss_after)
        self.notice(text, "trained", fields)

    def sum_checked(self, text: str, fields: Fields) -> None:
        """Chunks of a published sum were opened again, and are right."""
        self.vitals.sum_checked()
        self.notice(text, "sum-checked", fields)

    def sum_not_checked(self, text: str) -> None:
        """What a published sum was made of was not shown."""
        self.vitals.sum_not_checked()
        self.warning(text, "sum-not-checked")

    def attempt_failed(self, text: str) -> None:
        """An attempt that this institution was in ended without a result."""
        self.vitals.attempt_failed()
        self.notice(text, "attempt-failed")

    def round_ended(
        self, text: str, in_mean: bool, fields: Fields, share: float | None = None, cosine: float | None = None
    ) -> None:
        """A round has a result, with this share of the own update in it; a line of the log, shown by who started us."""
        self.vitals.round_ended(in_mean=in_mean, share=share, cosine=cosine)
        self._log(logging.INFO, text, "round-ended", fields)

    def busy(self, work: Work) -> AbstractContextManager[None]:
        """The time inside is spent on ``work``."""
        return self.vitals.busy(work)

    def transfer(self, what: str, done: int, total: int) -> None:
        """Bytes of an upload or download."""
        self.vitals.beat()

    def uploading(self, what: str, done: int, total: int) -> None:
        """Bytes of the upload of an update."""
        self.vitals.doing(Activity.UPLOADING)
        self.transfer(what, done, total)

    def _log(self, level: int, text: str, event: str, fields: Fields | None = None) -> None:
        told = plain_values({**self._about, **(fields or {})})
        _LOG.log(level, plain(text), extra={"event": str(event), "fields": told})


class TerminalReporter(Reporter):
    """Draws one live line on the terminal, with finished lines above it."""

    def __init__(self, console: Console | None = None, vitals: LiveVitals | None = None) -> None:
        super().__init__(vitals)
        self._console = console or PlainConsole(stderr=True)
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

    def notice(self, text: str, event: str = "notice", fields: Fields | None = None) -> None:
        """Print a line above the bar."""
        super().notice(text, event, fields)
        self.show(text)

    def show(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(plain(text), markup=False, highlight=False, soft_wrap=True)

    def warning(self, text: str, event: str = "warning") -> None:
        """Print a yellow line above the bar."""
        super().warning(text, event)
        text = f"Warning: {plain(text)}"
        self._console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def waiting(self, text: str, activity: Activity | None = None, key: str = "") -> None:
        """Show a bar without an end."""
        super().waiting(text, activity, key)
        self._show(text, None, None, "")

    def countdown(self, text: str) -> None:
        """Show a bar without an end."""
        super().countdown(text)
        self._show(text, None, None, "")

    def training(self, round_: int, progress: Training) -> None:
        """Show epochs and steps."""
        super().training(round_, progress)
        what, bar = _epoch(round_, progress), f"training {round_}"
        self._show(what, progress.step, progress.steps_total, _speed(progress), same_bar=bar)

    def transfer(self, what: str, done: int, total: int) -> None:
        """Show megabytes."""
        super().transfer(what, done, total)
        self._show(what, done, total or None, f"{done / 1e6:.1f} MB")

    def _show(self, text: str, done: int | None, total: int | None, detail: str, same_bar: str = "") -> None:
        text = plain(text)
        what = same_bar or text
        if self._task is None or self._what != what:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task, self._what = self._bars.add_task(text, total=total, detail=detail), what
        self._bars.update(self._task, description=text, completed=done, total=total, detail=detail)


def draws_bars(show: bool | None) -> bool:
    """What ``show`` comes to; None decides by whether a terminal is there."""
    return sys.stderr.isatty() if show is None else show


def make_reporter(show: bool | None, vitals: LiveVitals | None = None) -> Reporter:
    """Bars when ``show``, none when not; None decides by whether a terminal is there."""
    return TerminalReporter(vitals=vitals) if draws_bars(show) else Reporter(vitals)


def _epoch(round_: int, progress: Training) -> str:
    return f"round {round_ + 1}: training, epoch {progress.epoch + 1} of {progress.epochs}"


def _speed(progress: Training) -> str:
    return f"loss {progress.loss:.4f}, {progress.images_per_s:.0f} images/s"
