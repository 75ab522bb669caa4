"""A public random rotation of a vector, block by block, so that no coordinate of it stands out.

The parameters of a part form a matrix [rows, columns], row by row, zeros at the end, so that every tensor is spread
over all columns. A chunk of the encoded vector is a slab of columns, row by row: [rows, w * lanes]. It holds w blocks
of rows * lanes words, each of them neighbouring columns. A block is multiplied by random signs and a Walsh-Hadamard
matrix H (H H = block * I). H is the Kronecker product of small ones, so a rotation is a few products of small matrices,
which NumPy leaves to BLAS. All entries are +-1: integers go through exactly as long as every partial sum stays below
2^53.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedddpm_protocol.agreement.model_layout import Vector
from fedddpm_protocol.agreement.spec import PartSpec, RoundSpec
from fedddpm_protocol.primitives.canonical import tagged_hash
from fedddpm_protocol.primitives.keystream import MaskStream

Slab = npt.NDArray[Any]
Kind = Literal["f4", "f8"]
_FACTOR = 4  # exponent of the small matrices: larger ones cost more operations, smaller ones more passes
_SIGNS = 1 - 2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.int8)


class Rotation:
    """The rotation of one part in one attempt; forward and back, a slab of columns at a time."""

    def __init__(self, spec: RoundSpec, part: PartSpec, kind: Kind) -> None:
        block = part.values.block
        self._rows = part.values.rows
        self._width = part.values.coordinates // self._rows  # columns of the whole matrix
        self._columns = spec.chunk_coordinates // self._rows  # of a slab
        self._parameters = part.parameters
        seed = tagged_hash("rotation", spec.encoding_seed, part.name.encode())
        self._stream = MaskStream(seed, "signs", 8)
        self._table = _SIGNS.astype(kind)
        # Slabs live here from one call to the next: fresh memory for each would cost more than the sums do.
        size = self._rows * min(self._columns, self._width)
        self._slab, self._work, self._taken = np.empty(size, kind), np.empty(size, kind), np.empty((size // 8, 8), kind)
        exponent = self._rows.bit_length() - 1
        self._factors = [_hadamard(1 << min(_FACTOR, exponent - done), kind) for done in range(0, exponent, _FACTOR)]
        self._across = _hadamard(block // self._rows, kind)

    def columns(self, chunk: int) -> tuple[int, int]:
        """First column of a chunk and the one after its last."""
        first = chunk * self._columns
        return first, min(first + self._columns, self._width)

    def gather(self, vector: Vector, chunk: int) -> Slab:
        """The slab of ``vector`` [parameters] that a chunk carries: [rows, w * lanes], zeros where it is padding.

        Valid until the next call.
        """
        first, end = self.columns(chunk)
        rows, rest = divmod(self._parameters, self._width)
        slab = self._slab[: self._rows * (end - first)].reshape(self._rows, end - first)
        slab[:rows] = vector[: rows * self._width].reshape(rows, self._width)[:, first:end]
        slab[rows:] = 0
        if rest > first:
            last = vector[rows * self._width :][first:end]
            slab[rows, : len(last)] = last
        return slab

    def scatter(self, slab: Slab, chunk: int, vector: Vector) -> None:
        """Inverse of :meth:`gather`: write a slab into ``vector``, padding left out."""
        first, end = self.columns(chunk)
        rows, rest = divmod(self._parameters, self._width)
        vector[: rows * self._width].reshape(rows, self._width)[:, first:end] = slab[:rows]
        if rest > first:
            last = vector[rows * self._width :][first:end]
            last[:] = slab[rows, : len(last)]

    def forward(self, slab: Slab, chunk: int) -> Slab:
        """``H (signs * slab)``; the slab is overwritten, and the result with the next call."""
        slab *= self._signs(slab.shape[1], chunk)
        return self._transform(slab)

    def back(self, slab: Slab, chunk: int) -> Slab:
        """``signs * (H slab)``, which is ``block`` times what went forward; overwritten as by :meth:`forward`."""
        turned = self._transform(slab)
        turned *= self._signs(slab.shape[1], chunk)
        return turned

    def _signs(self, width: int, chunk: int) -> Slab:
        start = self.columns(chunk)[0] * self._rows // 8
        raw = self._stream.words(start, self._rows * width // 8)
        signs = self._taken[: len(raw)]
        np.take(self._table, raw, axis=0, out=signs, mode="clip")  # any byte is an index; other modes buffer
        return signs.reshape(self._rows, width)

    def _transform(self, slab: Slab) -> Slab:
        """H times every block; swaps between the slab and the memory of this object."""
        here, there = slab.reshape(-1), self._work[: slab.size]
        if len(self._across) > 1:
            lanes = len(self._across)
            np.matmul(here.reshape(-1, lanes), self._across, out=there.reshape(-1, lanes))
            here, there = there, here
        before = 1
        for factor in self._factors:
            shape = (before, len(factor), slab.size // (before * len(factor)))
            np.matmul(factor, here.reshape(shape), out=there.reshape(shape))
            here, there, before = there, here, before * len(factor)
        return here.reshape(self._rows, slab.shape[1])


@lru_cache(maxsize=32)
def _hadamard(size: int, kind: Kind) -> Slab:
    """Walsh-Hadamard matrix [size, size] in Sylvester's order."""
    matrix = np.ones((1, 1), kind)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.flags.writeable = False
    return matrix
