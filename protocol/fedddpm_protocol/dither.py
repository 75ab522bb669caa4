"""Public subtractive dither: what is added before rounding and taken out of the sum again.

One stream of 16-bit words D serves a segment. The member at place p of n uses (D + p * 2^16 / n) mod 2^16, so each
member's dither is uniform and its rounding error independent of its update, while the n of them are spread evenly over
a step: where updates are alike, their errors cancel instead of adding up. The sum of the dithers is a function of D
alone, so taking it out costs one stream and one table, whatever the size of the cohort.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fedddpm_protocol.canonical import tagged_hash
from fedddpm_protocol.prg import MaskStream
from fedddpm_protocol.spec import PartSpec, RoundSpec

UNITS = 2**16  # of dither in one step
_BITS = 16


class Dither:
    """The dither of one part in one attempt."""

    def __init__(self, spec: RoundSpec, part: PartSpec) -> None:
        self._stream = MaskStream(tagged_hash("dither", spec.encoding_seed, part.name.encode()), "words", _BITS)

    def member(self, start: int, count: int, position: int, cohort: int) -> npt.NDArray[np.uint16]:
        """Dither of one member for words ``start .. start + count``, in units of 1/65536 step, half a step too high."""
        words = self._stream.words(start, count).astype(np.uint16)
        words += np.uint16(_offset(position, cohort))
        return words

    def total(self, start: int, count: int, table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Sum of the dithers of those whose ``table`` it is, in units: integers [count]."""
        return np.take(table, self._stream.words(start, count))


def total_table(positions: Iterable[int], cohort: int) -> npt.NDArray[np.float64]:
    """Sum of the dithers of the members at ``positions`` for each word of the stream: integers [65536]."""
    words = np.arange(UNITS, dtype=np.int64)
    table = np.zeros(UNITS, np.int64)
    for position in positions:
        table += (words + _offset(position, cohort)) % UNITS - UNITS // 2
    return table.astype(np.float64)


def _offset(position: int, cohort: int) -> int:
    return position * UNITS // cohort
