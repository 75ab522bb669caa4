"""32 bytes that only this institution knows, from which all private randomness of its rounds follows.

Order of images, timesteps, noise and private rounding are drawn from it: an aggregator that knew them could solve a sum
for the images behind it. It is made once, is on the disk before it is used, and never leaves the state folder; so what
is repeated after a kill is repeated exactly.
"""

from __future__ import annotations

import secrets

from fedddpm.state.folder import StateFolder
from fedddpm_protocol.primitives.canonical import kdf

TRAINING_FACT = "training-secret"  # the fact that holds it
_BYTES = 32


def training_seed(state: StateFolder) -> int:
    """256 bits that decide this institution's trainings, see ``updates.local_training``."""
    return int.from_bytes(kdf(_secret(state), b"", "training"), "big")


def rounding_seed(state: StateFolder, base_model_hash: bytes, part: str) -> bytes:
    """32 bytes that decide private rounding of a base model and part: the same in all attempts."""
    return rounding_seed_of(_secret(state), base_model_hash, part)


def rounding_seed_of(secret: bytes, base_model_hash: bytes, part: str) -> bytes:
    """As :func:`rounding_seed`, from the institution's ``secret``."""
    return kdf(secret, base_model_hash, "rounding", part.encode())


def _secret(state: StateFolder) -> bytes:
    known = state.fact(TRAINING_FACT)
    if known is not None and len(known) == _BYTES:
        return known
    fresh = secrets.token_bytes(_BYTES)
    state.remember(TRAINING_FACT, fresh)
    return fresh
