"""What one institution learned from a base model: the update that goes under masks, and what stays at home."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedddpm.errors import TrainingError
from fedddpm.model.ema import AverageState
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method
from fedddpm_protocol.agreement.model_layout import Vector
from fedddpm_protocol.encoding.encoder import l2_norm, loss_units
from fedddpm_protocol.errors import NonFiniteError
from fedddpm_protocol.primitives.canonical import tagged_hash, u64


@dataclass(frozen=True, eq=False)
class LocalUpdate:
    """What this institution learned from one base model."""

    run: str
    round: int
    base_model_hash: bytes
    terms_hash: bytes
    delta: Vector  # trained minus base, shared parts in manifest order, not clipped
    local: Vector  # trained parts that stay here, for good or until their turn; empty where all are shared
    samples: int
    loss_before: float  # held-out loss of the base model
    loss_after: float  # held-out loss of the locally trained model
    seconds: float
    average: AverageState | None = None  # of the trained weights, which stays here; None where none is kept
    steps: int = 0  # of the training; 0 where it was not written down, which is below every floor
    images_seen: int = 0  # in these steps, as often as each was seen
    train_loss: float | None = None  # mean over these steps; None where it was not written down
    feedback: Vector | None = (
        None  # what earlier rounding took from the shared parts; None where nothing is made up for
    )

    @cached_property
    def sent(self) -> Vector:
        """What goes into the sum: the delta, and what is made up for; one vector, however often it is asked for."""
        return self.delta if self.feedback is None else self.delta + self.feedback

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that name all of it that goes under masks."""
        figures = (self.samples, loss_units(self.loss_before), loss_units(self.loss_after))
        return tagged_hash("update", *map(u64, figures), self.sent.data.cast("B"))


def local_parts(method: Method) -> tuple[str, ...]:
    """The parts that never leave the institution."""
    return tuple(part for part in MODEL_PARTS if part not in method.shared_parts)


def kept_parts(method: Method) -> tuple[str, ...]:
    """The parts whose trained weights an institution keeps beside what it sends: with TURN the whole network."""
    return MODEL_PARTS if method is Method.TURN else local_parts(method)


def require_finite(update: LocalUpdate) -> None:
    """Raise TrainingError where an update holds NaN or infinity: it would destroy everybody's sum."""
    try:
        l2_norm(update.sent)
        l2_norm(np.array([update.loss_before, update.loss_after]))
    except NonFiniteError as error:
        raise TrainingError(
            "the update of this round holds NaN or infinity and is not sent",
            "Look for broken images, or ask the coordinator for a lower learning rate",
        ) from error
