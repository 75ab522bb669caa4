"""What the rings of encoding_accuracy.py are measured against: other ways to send updates and to add them.

Each takes the updates [coordinates] of a round and their weights, and gives the weighted mean that its receiver has.
None of them hides anything; only their error is of interest here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from benchmarks.encoding.updates import Vector, Wide

from fedddpm_protocol.agreement.model_layout import Manifest


def float32_mean(deltas: Sequence[Vector], units: Sequence[int]) -> Vector:
    """Plain federated averaging: float32 values, weighted and added in float32."""
    total = np.zeros_like(deltas[0])
    for delta, weight in zip(deltas, units, strict=True):
        total += delta * np.float32(weight / sum(units))
    return total


def bfloat16_mean(deltas: Sequence[Vector], units: Sequence[int]) -> Vector:
    """Half the bytes of that: every value rounded to bfloat16 before it is sent, added in float32."""
    total = np.zeros_like(deltas[0])
    for delta, weight in zip(deltas, units, strict=True):
        total += to_bfloat16(delta) * np.float32(weight / sum(units))
    return total


def to_bfloat16(values: Vector) -> Vector:
    """The nearest values with eight bits of mantissa, ties to even, held in float32. Finite values only."""
    raw = values.view(np.uint32)
    odd = (raw >> np.uint32(16)) & np.uint32(1)
    return ((raw + (np.uint32(0x7FFF) + odd)) & np.uint32(0xFFFF0000)).view(np.float32)


def per_tensor_mean(
    deltas: Sequence[Vector], units: Sequence[int], manifest: Manifest, bits: int, seed: int = 0
) -> Wide | None:
    """Stochastic rounding on one scale for each tensor, in a ring with room for all; None where it has no room.

    The scale is the largest weighted value that anybody has in the tensor this very round, which nobody could know:
    real use would have to guess it, and do worse.
    """
    room = 2 ** (bits - 1) - 1 - len(deltas)  # a rounded value exceeds its own by less than one unit
    if room < 1:
        return None
    largest = np.zeros(len(manifest))
    for delta, weight in zip(deltas, units, strict=True):
        np.maximum(largest, [weight * float(np.abs(piece).max()) for piece in _tensors(delta, manifest)], out=largest)
    steps = np.repeat(np.where(largest > 0, largest * len(deltas) / room, 1.0), [tensor.size for tensor in manifest])
    total: Wide = np.zeros(deltas[0].shape)
    for number, (delta, weight) in enumerate(zip(deltas, units, strict=True)):
        chance = np.random.default_rng([seed, number]).random(len(delta))
        total += np.floor(delta * (weight / steps) + chance)
    total *= steps / sum(units)
    return total


def _tensors(delta: Vector, manifest: Manifest) -> Iterable[npt.NDArray[np.float32]]:
    start = 0
    for tensor in manifest:
        yield delta[start : start + tensor.size]
        start += tensor.size
