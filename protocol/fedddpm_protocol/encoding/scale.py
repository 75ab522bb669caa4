"""The common scale of a sum: what one unit of the ring stands for, and when a sum was too large for it.

FIXED_POINT fits every sum of clipped updates, whatever they are. ROTATED is sized for the sum that is likely: after the
rotation its coordinates are close to normal with one known deviation, so the ring needs room for a few deviations of
them, not for the worst case. What is likely follows from the last accepted sum of the part.
"""

from __future__ import annotations

import math

import numpy as np

from fedddpm_protocol.agreement.spec import FIXED_POINT, WEIGHT_UNITS, PartSpec, RoundSpec
from fedddpm_protocol.primitives import ring

_FEW_BITS = 12
_FEWEST = 3.6  # deviations that a sum must leave room for: with fewer more than one word in 3,000 wraps
_HOT_REFERENCE, _HOT_LIMIT = 1.5, 3.0  # of one block: how far above the others is normal; deviations it keeps


def deviations(bits: int) -> float:
    """Standard deviations of a coordinate of the predicted sum in half the ring."""
    return 5.75 if bits < _FEW_BITS else 6.6


def predicted_norm(spec: RoundSpec, part: PartSpec, cohort: int) -> float:
    """The L2 norm for which the sum of ``cohort`` weighted updates is given room.

    Updates that agree add up by their number, updates that do not by its root; a mean of m tells too little of what
    fewer will give, hence the second factor. Clipping bounds both.
    """
    largest = spec.clip_norm * cohort
    known = part.reference
    if known.norm == 0:
        return largest
    count = max(float(cohort), math.sqrt(cohort * known.survivors))
    return min(largest, known.norm * count * (known.weight / known.survivors / WEIGHT_UNITS))


def step_of(spec: RoundSpec, part: PartSpec, cohort: int) -> float:
    """Value of one ring unit in the attempt at ``part`` whose cohort has ``cohort`` members."""
    half: int = 2 ** (part.values.bits - 1)
    if part.values.encoding == FIXED_POINT:  # every clipped update, rounded either way, fits largest_cohort times
        return float(spec.clip_norm * spec.largest_cohort / (half - 2 * spec.largest_cohort))
    words = part.values.coordinates
    return predicted_norm(spec, part, cohort) * deviations(part.values.bits) / (math.sqrt(words) * half)


class Energy:
    """Mean squares of an opened values segment in ring units, over all and in its hottest block, chunk by chunk."""

    def __init__(self, part: PartSpec) -> None:
        self._values = part.values
        self._total = self._hottest = 0.0
        self._words = 0

    def add(self, words: ring.Words) -> None:
        """Count the opened words of one chunk, in any order."""
        values = ring.signed_floats(words, self._values.bits)
        if self._values.block:
            count = len(words) // self._values.block
            slab = values.reshape(self._values.rows, count, -1)
            energies = np.einsum("rbl,rbl->b", slab, slab)
            total, hottest = float(energies.sum()), float(energies.max())
        else:
            total, hottest = float(values @ values), 0.0
        self._total += total
        self._hottest = max(self._hottest, hottest)
        self._words += len(words)

    @property
    def complete(self) -> bool:
        """Whether every chunk was counted."""
        return self._words == self._values.coordinates

    @property
    def root_mean_square(self) -> float:
        """Of all words."""
        return math.sqrt(self._total / self._values.coordinates)

    @property
    def hottest_block(self) -> float:
        """Root mean square of the words of the block where it is largest; 0.0 where nothing is rotated."""
        return math.sqrt(self._hottest / self._values.block) if self._values.block else 0.0

    @property
    def reference(self) -> float:
        """Root mean square that the next scale should be made for: more than that of all where one block stands out."""
        return max(self.root_mean_square, self.hottest_block / _HOT_REFERENCE)

    @property
    def wrapped(self) -> bool:
        """Whether coordinates have probably left the ring; never where they cannot."""
        if not self._values.block:
            return False
        half: int = 2 ** (self._values.bits - 1)
        return self.root_mean_square > half / _FEWEST or self.hottest_block > half / _HOT_LIMIT
