"""What an institution is doing right now, for whoever measures it: one object that the work tells and metrics read.

Everything in it is this institution's own, and nothing of it is secret: no key, no share, no word of an update.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType


class Activity(StrEnum):
    """What the institution is at."""

    STARTING = "starting"  # settings, images
    WAITING = "waiting"  # for a run, or for the next attempt
    TRAINING = "training"
    JOINED = "joined"  # in a cohort, before the upload
    UPLOADING = "uploading"
    UPLOADED = "uploaded"  # until the result is there
    SITTING_OUT = "sitting-out"
    STALLED = "stalled"
    STANDING_BY = "standing-by"  # a run is over, for the next one
    ENDED = "ended"


class Work(StrEnum):
    """What time is spent on; the rest is waiting."""

    TRAINING = "training"  # with measuring the held-out loss
    PROTOCOL = "protocol"  # keys, shares, masks, transfers, results


def sdk_version() -> str:
    """Of the installed package; ``unknown`` for a source tree."""
    try:
        return version("fedddpm-sdk")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class Vitals:
    """One moment; times are Unix seconds, counters begin with the process."""

    member_id: str = ""
    device: str = ""
    activity: Activity = Activity.STARTING
    round: int | None = None  # from 0; None before there is one
    attempt: int | None = None  # from 0
    steps: int = 0  # local steps done in the newest training
    steps_planned: int = 0
    images_per_s: float | None = None
    train_loss: float | None = None  # of the last batch
    loss_before: float | None = None  # own held-out loss around the newest training
    loss_after: float | None = None
    rounds_in_mean: int = 0  # finished with this institution's update in the mean
    rounds_without: int = 0  # finished without it
    share: float | None = None  # of the own update in the newest round's mean; None where it is not known
    cosine: float | None = None  # between the two
    sums_checked: int = 0  # published sums of which chunks were opened again, and were right
    sums_not_checked: int = 0  # rounds whose sums the aggregator did not show
    alarms: frozenset[str] = frozenset()  # kinds that rang with the newest result
    attempts_failed: int = 0  # that this institution was in
    bytes_up: int = 0
    bytes_down: int = 0
    served_at: float | None = None  # when a piece of an answer last came that is no failure
    away: bool = False  # whether it is being waited for
    seconds: Mapping[Work, float] = field(default_factory=lambda: MappingProxyType(dict.fromkeys(Work, 0.0)))
    silent_s: float = 0.0  # since the last sign of life of the work


class LiveVitals:
    """The vitals as they change. One thread works and tells; any thread reads. Cheap enough for every step."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = Vitals()
        self._beat_at = time.monotonic()
        self._busy: tuple[Work, float] | None = None  # with what, since when

    def read(self) -> Vitals:
        """A picture of this moment, with the time that work under way has taken so far."""
        with self._lock:
            now, busy, at = self._now, self._busy, time.monotonic()
            seconds = dict(now.seconds)
            if busy is not None:
                seconds[busy[0]] += at - busy[1]
            return replace(now, seconds=MappingProxyType(seconds), silent_s=at - self._beat_at)

    def beat(self) -> None:
        """The work goes on."""
        self._beat_at = time.monotonic()

    def introduce(self, member_id: str, device: str) -> None:
        """Who works, and where."""
        self._set(member_id=member_id, device=device)

    def doing(self, activity: Activity) -> None:
        """What the institution is at from now on."""
        self._set(activity=activity)

    def at(self, round_: int, attempt: int) -> None:
        """The round and attempt at work, from 0."""
        self._set(round=round_, attempt=attempt)

    def stepped(self, steps: int, planned: int, loss: float, images_per_s: float) -> None:
        """So many of the planned local steps are done."""
        self._set(steps=steps, steps_planned=planned, train_loss=loss, images_per_s=images_per_s)

    def trained(self, loss_before: float, loss_after: float) -> None:
        """A training ended with these losses on the own held-out images."""
        self._set(loss_before=loss_before, loss_after=loss_after, images_per_s=None)

    def round_ended(self, *, in_mean: bool, share: float | None = None, cosine: float | None = None) -> None:
        """A round has a result; ``in_mean``: this institution's update is in it, with this share and cosine."""
        name = "rounds_in_mean" if in_mean else "rounds_without"
        self._set(**{name: getattr(self._now, name) + 1}, share=share, cosine=cosine)

    def sum_checked(self) -> None:
        """Chunks of a published sum were opened again, and are right."""
        self._set(sums_checked=self._now.sums_checked + 1)

    def sum_not_checked(self) -> None:
        """What a published sum was made of was not shown."""
        self._set(sums_not_checked=self._now.sums_not_checked + 1)

    def alarmed(self, kinds: frozenset[str]) -> None:
        """These kinds of alarms rang with the newest result; none, mostly."""
        self._set(alarms=kinds)

    def attempt_failed(self) -> None:
        """An attempt that this institution was in ended without a result."""
        self._set(attempts_failed=self._now.attempts_failed + 1)

    def moved(self, bytes_up: int, bytes_down: int, *, served: bool) -> None:
        """A request went out and an answer came; ``served``: not one that says that the aggregator cannot."""
        now = self._now
        moved = {"bytes_up": now.bytes_up + bytes_up, "bytes_down": now.bytes_down + bytes_down}
        self._set(**moved, **({"served_at": time.time(), "away": False} if served else {}))

    def heard(self) -> None:
        """A piece of an answer came, or a sign of life while one is waited for."""
        self._set(served_at=time.time(), away=False)

    def away(self) -> None:
        """The aggregator does not serve and is being waited for."""
        self._set(away=True)

    def _set(self, **changes: object) -> None:
        with self._lock:
            self._now = replace(self._now, **changes)  # type: ignore[arg-type]  # as replace itself is typed
            self._beat_at = time.monotonic()

    @contextmanager
    def busy(self, work: Work) -> Iterator[None]:
        """The time inside counts as ``work``; not nested."""
        self._busy = (work, time.monotonic())
        try:
            yield
        finally:
            with self._lock:
                seconds = {**self._now.seconds, work: self._now.seconds[work] + time.monotonic() - self._busy[1]}
                self._now = replace(self._now, seconds=MappingProxyType(seconds))
                self._busy, self._beat_at = None, time.monotonic()
