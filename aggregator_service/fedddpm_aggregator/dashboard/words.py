"""How things are called on the page, and how numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedddpm_aggregator.dashboard.now import RunNow, SessionNow
from fedddpm_protocol.agreement.methods import part_of
from fedddpm_protocol.wire.phases import Phase, place_of

TITLES = {
    Phase.JOIN: "Training and joining",
    Phase.SHARES: "Sharing keys",
    Phase.MASKED: "Uploading masked updates",
    Phase.CONFIRM: "Confirming who is in",
    Phase.UNMASK: "Releasing the masks",
    Phase.OPENING: "Opening the sum",
    Phase.DONE: "Done",
    Phase.FAILED: "Failed",
}
STATUS = {  # of a run: kind for the colour, and word
    "running": ("good", "running"),
    "paused": ("wait", "paused"),
    "stalled": ("bad", "stalled"),
    "finished": ("good", "finished"),
    "ended": ("out", "ended"),
}
NOTHING = "\N{EN DASH}"
_UNITS = ("kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True)
class Group:
    """The sessions of one part: one, or one a shard."""

    part: str
    sessions: tuple[SessionNow, ...]

    @property
    def slowest(self) -> SessionNow:
        """The session that is behind the others."""
        return min(self.sessions, key=lambda session: place_of(session.phase))

    @property
    def done(self) -> int:
        """Shards whose sum is opened."""
        return sum(session.phase is Phase.DONE for session in self.sessions)


def grouped(run: RunNow | None) -> list[Group]:
    """Sessions by part, in the method's order."""
    by_part: dict[str, list[SessionNow]] = {}
    for session in run.sessions if run is not None else ():
        by_part.setdefault(part_of(session.name), []).append(session)
    return [Group(part, tuple(sessions)) for part, sessions in by_part.items()]


def size(count: int) -> str:
    """Bytes in decimal units: 1234567 -> "1.2 MB"."""
    value, unit = float(count), "bytes"
    for larger in _UNITS:
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def percent(share: float) -> str:
    """A share of 1: 0.9123 -> "91.2 %"."""
    return f"{100 * share:.1f} %"


def lasting(seconds: float) -> str:
    """A duration in its two largest units: 3725 -> "1 h 2 min"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def loss(value: float | None) -> str:
    """A mean loss, or a dash where none was reported."""
    return NOTHING if value is None else f"{value:.4f}"


def names(members: Sequence[str], most: int = 8) -> str:
    """Names in a line, the rest as a number."""
    shown = ", ".join(members[:most])
    return shown if len(members) <= most else f"{shown} and {len(members) - most} more"
