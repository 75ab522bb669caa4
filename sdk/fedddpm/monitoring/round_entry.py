"""One round in figures, and whoever is told of it: tables, TensorBoard, MLflow. All of it stays at home."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class RoundEntry:
    """A round that has a result, as this institution saw it; None: not known, or it did not train.

    The fields are the columns of ``rounds.csv``, in their order. Rounds and attempts count from 1 there.
    """

    run: str
    round: int  # from 1
    attempt: int | None  # from 1
    ended: str | None  # UTC, ISO 8601: when its result was seen here
    took_part: bool | None  # whether the own update is in the mean
    cohort: int | None  # institutions that began
    survivors: int | None  # institutions in the mean
    steps: int | None  # local steps
    images: int | None  # own images to train on
    images_seen: int | None  # in these steps, as often as each was seen
    train_seconds: float | None  # of the local training
    seconds: float | None  # from the result before, or the start of the process, to this one
    train_loss: float | None  # mean over the local steps
    loss_before: float | None  # own held-out loss before local training: with TURN, of the network as it is here
    loss_after: float | None  # the same after local training
    mean_loss_before: float | None  # mean of the survivors' held-out losses
    mean_loss_after: float | None
    norm: float | None  # L2 norm of the own update
    clip_norm: float | None  # largest that the round allows
    clip_factor: float | None  # what the own update was multiplied by, at most 1
    share: float | None  # of the own update in the mean
    cosine: float | None  # between the two
    bytes_up: int
    bytes_down: int

    @property
    def figures(self) -> Mapping[str, float]:
        """What can be drawn as a curve over rounds: each known number, under the name of its column."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _PLACES}
        return {name: float(value) for name, value in values.items() if value is not None}


_PLACES = ("run", "round", "ended")


class RoundObserver(ABC):
    """Is told of rounds when they have a result; may fail with any exception, which ends nothing.

    ``name`` says what it is and where it writes: rounds that one of this name was told of are not told again.
    """

    name: str

    @abstractmethod
    def observe(self, entries: Sequence[RoundEntry], new: Sequence[RoundEntry]) -> None:
        """Every round so far, and those of them that this observer was not told of."""

    def show(self, entry: RoundEntry, picture: Path) -> None:  # noqa: B027  # not all have a use for pictures
        """A PNG was drawn after the newest round."""

    def close(self) -> None:  # noqa: B027  # nor hold something open
        """No more rounds come in this process."""


class Painter(Protocol):
    """Draws after a round."""

    def draw(self, entry: RoundEntry, train_seconds: float | None) -> Path | None:
        """The PNG of the newest round, or None where none was drawn; ``train_seconds``: of the newest training."""
