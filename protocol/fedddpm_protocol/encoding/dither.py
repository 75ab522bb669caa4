"""Public subtractive dither: what is added before rounding and taken out of the sum again.

One stream of words D, counting 1/U of a step, serves a segment. Each member shifts D by an amount of its own, so its
dither is uniform and its rounding error independent of its update, while the n of a cohort are spread evenly over a
step: where updates are alike, their errors cancel instead of adding up. Neighbours in the cohort, who may well drop
together, stand far apart, so that those who are left are spread as well. The sum of the dithers is a function of D
alone, so taking it out costs one stream and one table, whatever the size of the cohort.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fedddpm_protocol.agreement.spec import PartSpec, RoundSpec
from fedddpm_protocol.primitives.canonical import tagged_hash
from fedddpm_protocol.primitives.keystream import MaskStream

UNITS = 2**12  # of dither in one step: fine enough for any ring, and decoding stays below 2^53
_STREAM_BITS, _SHIFT = 16, 4  # of a word of the stream, and what is left out of it


class Dither:
    """The dither of one part in one attempt."""

    def __init__(self, spec: RoundSpec, part: PartSpec) -> None:
        seed = tagged_hash("dither", spec.encoding_seed, part.name.encode())
        self._stream = MaskStream(seed, "words", _STREAM_BITS)

    def member(self, start: int, count: int, position: int, cohort: int) -> npt.NDArray[np.uint16]:
        """Dither of one member for words ``start .. start + count``, in units, half a step too high."""
        words = self._words(start, count)
        words += np.uint16(shift(position, cohort))
        words &= np.uint16(UNITS - 1)
        return words

    def total(self, start: int, table: npt.NDArray[np.float64], out: npt.NDArray[np.float64]) -> None:
        """Write the sum of the dithers behind ``table`` into ``out``, from word ``start`` on, in units."""
        np.take(table, self._words(start, len(out)), out=out, mode="clip")  # no index is outside; other modes buffer

    def _words(self, start: int, count: int) -> npt.NDArray[np.uint16]:
        words = self._stream.words(start, count).astype(np.uint16)
        words >>= np.uint16(_SHIFT)
        return words


def shift(position: int, cohort: int) -> int:
    """Units by which the member at ``position`` of a cohort shifts the stream: steps of about the golden section."""
    stride = max(1, cohort * 618 // 1000)
    while math.gcd(stride, cohort) > 1:
        stride += 1
    return position * stride % cohort * UNITS // cohort


def total_table(positions: Iterable[int], cohort: int) -> npt.NDArray[np.float64]:
    """Sum of the dithers of the members at ``positions`` for each word of the stream: integers [UNITS]."""
    words = np.arange(UNITS, dtype=np.int64)
    table = np.zeros(UNITS, np.int64)
    for position in positions:
        table += (words + shift(position, cohort)) % UNITS - UNITS // 2
    return table.astype(np.float64)
