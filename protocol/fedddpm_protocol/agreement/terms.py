"""The terms of a training: all that decides what an institution's update on a given base model becomes.

An institution trains once on a base model, under one set of terms (see ``spent``). What only decides how the update
travels (ring, rotation, phases, attempt, roster) is none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.canonical import added_later, tagged_hash


@dataclass(frozen=True)
class TrainingTerms:
    """What a round asks of a training, beside the base model itself."""

    method: str
    architecture_hash: bytes
    initial_model_hash: bytes  # theta_0, which the parts that stay at home began with
    weighting: str
    weight_cap: int
    clip_norm: float
    epochs: int
    max_steps: int
    batch_size: int
    learning_rate: float
    charter_hash: bytes = added_later(b"")  # what the root signed of the training beside these, least work among it

    @property
    def hash(self) -> bytes:
        """32 bytes that name these terms."""
        return tagged_hash("terms", canonical.encode(self))
