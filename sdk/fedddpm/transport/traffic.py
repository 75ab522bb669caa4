"""What an institution sends and receives: the counters of what really went over the line."""

from __future__ import annotations

from dataclasses import dataclass, fields

FLOAT_BYTES = 4  # of a parameter in float32


@dataclass(frozen=True)
class Traffic:
    """Parameters are coordinates of model vectors; payload is their bytes; bytes are whole requests and replies."""

    parameters_up: int = 0
    parameters_down: int = 0
    payload_up: int = 0
    payload_down: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Traffic)))

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(Traffic))


class Meter:
    """Counts traffic until somebody takes it away to make it durable."""

    def __init__(self) -> None:
        self._untaken = Traffic()

    def add(self, traffic: Traffic) -> None:
        """Count ``traffic``."""
        self._untaken += traffic

    def take(self) -> Traffic:
        """What was counted since the last call."""
        taken, self._untaken = self._untaken, Traffic()
        return taken


def fedavg_bytes(parameters: int) -> int:
    """What naive FedAvg moves for one institution in one round: the whole network, up and down, in float32."""
    return 2 * FLOAT_BYTES * parameters


def less_than_fedavg(moved: int, fedavg: int) -> float:
    """Per cent by which ``moved`` bytes are less than the ``fedavg`` bytes of as many institutions and rounds."""
    return 100 * (1 - moved / fedavg)


def beside_fedavg(up: int, down: int, fedavg: int | None) -> str:
    """Bytes up and down for people: ``1.45 MB up, 1.43 MB down (88.0 % less than FedAvg)``.

    ``fedavg``: bytes of as many rounds of naive FedAvg; None or 0 where that is not known or there was no round.
    """
    text = f"{up / 1e6:.2f} MB up, {down / 1e6:.2f} MB down"
    if not fedavg:
        return text
    less = less_than_fedavg(up + down, fedavg)
    return f"{text} ({abs(less):.1f} % {'less' if less >= 0 else 'more'} than FedAvg)"
