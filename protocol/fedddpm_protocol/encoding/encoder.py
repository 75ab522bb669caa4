"""One institution's update to ring words: scaled, rotated, dithered and rounded, or in fixed point.

Values are the weighted delta ``w_i * delta`` with ``w_i = weight units / 65535``, in units of the common scale that
``scale`` gives. ROTATED: the vector is rotated, and rounded with public dither that the decoder takes out again.
FIXED_POINT: rounding is stochastic (unbiased) from an AES-CTR stream. Both work chunk by chunk, so an update is never
held twice, however long.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedddpm_protocol.agreement.chunks import chunk_span
from fedddpm_protocol.agreement.model_layout import Vector
from fedddpm_protocol.agreement.spec import EQUAL, LOSS_LIMIT, LOSS_UNITS, ROTATED, WEIGHT_UNITS, PartSpec, RoundSpec
from fedddpm_protocol.encoding.dither import UNITS, Dither
from fedddpm_protocol.encoding.rotation import Rotation
from fedddpm_protocol.encoding.scale import step_of
from fedddpm_protocol.errors import EncodingError, NonFiniteError, RingOverflowError
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.primitives.keystream import MaskStream

_ROUNDING_BITS = 32
_PIECE = 2**18  # coordinates that are looked at together
_ABSURD = 1e6  # times the clip norm: no update of a training that works
_COARSE = 1.25  # steps: own root mean square, times the root of those it hides among, below which rounding is private
_HALF_WORD = _ROUNDING_BITS // 2
_FLOAT32_BITS = 16  # float32 carries the rotated values of rings up to here
_FLOAT32_ROOM = 2.0**19  # as long as their root mean square is within this: five bits are left for the largest
_FLOAT64_ROOM = 2.0**52  # of the whole vector's norm in ring units: no word can be larger


def weight_units(samples: int, spec: RoundSpec) -> int:
    """Weight of an institution in [1, 65535]: its samples over the cap, or full weight where weights are equal."""
    if samples < 1:
        raise EncodingError("an institution without samples has no update to give")
    if spec.weighting == EQUAL:
        return WEIGHT_UNITS
    return capped_weight(samples, spec.weight_cap)


def capped_weight(samples: int, weight_cap: int) -> int:
    """Samples over the cap in units of 1/65535, at least one unit."""
    return max(1, round(min(samples, weight_cap) * WEIGHT_UNITS / weight_cap))


def loss_units(loss: float) -> int:
    """A loss in units of 2^-20, clipped to [0, 16); NonFiniteError for NaN or infinity."""
    if not math.isfinite(loss):
        raise NonFiniteError(f"a loss of {loss} cannot be summed; the training has diverged")
    return min(int(LOSS_LIMIT * LOSS_UNITS) - 1, max(0, round(loss * LOSS_UNITS)))


def sums_words(part: PartSpec, weight: int, loss_before: float, loss_after: float) -> ring.Words:
    """Ring words [3] of one institution's weights segment, as SUM_FIELDS."""
    if not 1 <= weight <= WEIGHT_UNITS:
        raise RingOverflowError(f"a weight of {weight} units is outside 1 to {WEIGHT_UNITS}")
    values = [weight, loss_units(loss_before), loss_units(loss_after)]
    return np.array(values, ring.word_dtype(part.weights.bits))


def fit_to_norm(delta: Vector, clip_norm: float) -> tuple[float, float]:
    """The factor, at most 1, that brings ``delta`` to an L2 norm of at most ``clip_norm``, and the norm it has.

    NonFiniteError if it holds NaN or infinity; EncodingError for a norm that no clipping makes sense of.
    """
    norm = l2_norm(delta)
    if norm <= clip_norm:
        return 1.0, norm
    if norm > _ABSURD * clip_norm:
        raise EncodingError(
            f"an update of norm {norm:.3g} is absurd beside the agreed {clip_norm:.3g}: the training has diverged; "
            "lower the learning rate or check the images"
        )
    return clip_norm / norm * (1 - 2**-20), norm


def l2_norm(vector: npt.NDArray[np.floating[Any]]) -> float:
    """L2 norm, summed in float64 without a copy of the vector; NonFiniteError if it holds NaN or infinity."""
    total = 0.0
    for start in range(0, len(vector), _PIECE):
        wide = vector[start : start + _PIECE].astype(np.float64)
        total += float(np.dot(wide, wide))
    if not math.isfinite(total):
        raise NonFiniteError("the update holds NaN or infinity; lower the learning rate or check the images")
    return math.sqrt(total)


@dataclass(frozen=True)
class Place:
    """Where a member stands in its session's cohort: scale and dither follow from it."""

    position: int
    cohort: int  # members of U1
    conspirators: int = 0  # how many of them may tell the aggregator what they added: c_max

    @classmethod
    def of(cls, member: str, cohort: Sequence[str], conspirators: int = 0) -> Place:
        """The place of ``member`` in the sorted ids of a cohort; EncodingError if it has none."""
        if member not in cohort:
            raise EncodingError(f"{member!r} is not in the cohort and has nothing to add to its sum")
        return cls(list(cohort).index(member), len(cohort), conspirators)

    @property
    def hiding(self) -> int:
        """Members behind whose roundings a single one hides: conspirators take theirs out of the sum."""
        return max(1, self.cohort - self.conspirators)


class ValuesEncoder:
    """Ring words of one update, chunk by chunk, so that masking needs no second whole vector.

    ``delta`` [parameters] counts ``factor`` times, see :func:`fit_to_norm`. ``rounding_seed`` (32 bytes) makes private
    randomness repeatable, which is fresh without it: that of stochastic rounding, and the noise that joins the dither
    where the scale is coarse beside the update.

    Raises:
        NonFiniteError, RingOverflowError, EncodingError: an update that cannot be summed.
    """

    def __init__(
        self,
        spec: RoundSpec,
        part: PartSpec,
        delta: Vector,
        weight: int,
        place: Place,
        *,
        factor: float = 1.0,
        rounding_seed: bytes | None = None,
    ) -> None:
        if delta.dtype != np.float32 or delta.shape != (part.parameters,):
            raise EncodingError(f"{part.parameters} float32 values expected, got {delta.dtype}{delta.shape}")
        norm = l2_norm(delta) * factor
        if norm > spec.clip_norm:
            raise RingOverflowError(f"an update of norm {norm:.6g} exceeds the agreed {spec.clip_norm:.6g}; clip it")
        if not 1 <= weight <= WEIGHT_UNITS:
            raise RingOverflowError(f"a weight of {weight} units is outside 1 to {WEIGHT_UNITS}")
        self._spec, self._part, self._delta, self._place = spec, part, delta, place
        self._weight = factor * weight / WEIGHT_UNITS
        self._step = step_of(spec, part, place.cohort)
        reach = norm * weight / WEIGHT_UNITS / self._step
        if reach > _FLOAT64_ROOM:  # words would be what a cast makes of them, not whole numbers modulo the ring
            raise RingOverflowError(
                f"the scale that the specification gives part {part.name!r} is absurd: one unit of the ring stands for "
                f"{self._step:.3g}, beside an update of norm {norm:.3g}"
            )
        if part.values.encoding == ROTATED:
            single = reach <= _FLOAT32_ROOM * math.sqrt(part.values.coordinates)
            narrow = part.values.bits <= _FLOAT32_BITS and single
            self._rotation, self._dither = Rotation(spec, part, "f4" if narrow else "f8"), Dither(spec, part)
        seed = rounding_seed or secrets.token_bytes(32)
        self._rounding = MaskStream(seed, "rounding", _ROUNDING_BITS)
        # Where a step is as large as what is rounded, public dither would tell whose rounding a word of the sum is.
        own = reach / math.sqrt(part.values.coordinates)
        self._coarse = own * math.sqrt(place.hiding) < _COARSE

    def chunk(self, index: int) -> ring.Words:
        """Words of chunk ``index``; the same ones at every call, in memory of their own."""
        start, count = chunk_span(self._part.values, self._spec.chunk_coordinates, index)
        if self._part.values.encoding == ROTATED:
            rounded = self._rotated(index, start)
            if self._coarse:
                rounded += self._private_noise(start, rounded)
            np.floor(rounded, out=rounded)
        else:
            rounded = self._delta[start : start + count].astype(np.float64)
            rounded *= self._weight / self._step
            rounded += self._rounding.words(start, count) * 2.0**-_ROUNDING_BITS
            np.floor(rounded, out=rounded)
        return _to_words(rounded, self._part.values.bits)

    def residual(self, index: int, into: Vector) -> None:
        """Write what rounding took from the parameters of chunk ``index`` into ``into`` [parameters], zeros before.

        It is in the units of ``delta``: added to the next update it is not lost but late (error feedback). Where
        rounding had to be private nothing is written: that noise is forgotten, and larger than what could be made up.
        """
        if self._coarse:
            return
        start, _ = chunk_span(self._part.values, self._spec.chunk_coordinates, index)
        shifted = self._rotated(index, start)  # value + dither + 1/2; its floor is sent, the dither is taken out again
        error = shifted - np.floor(shifted)
        error -= 0.5  # value - (sent - dither)
        back = self._rotation.back(error, index)
        back *= self._step / self._weight / math.sqrt(self._part.values.block)
        self._rotation.scatter(back, index, into)

    def _private_noise(self, start: int, like: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
        """Triangular noise of one step to either side; the rounding's first two moments no longer tell the value."""
        words = self._rounding.words(start, like.size)
        noise = (words >> np.uint32(_HALF_WORD)).astype(like.dtype)
        noise -= words & np.uint32(2**_HALF_WORD - 1)
        noise *= like.dtype.type(2.0**-_HALF_WORD)
        return noise.reshape(like.shape)

    def _rotated(self, index: int, start: int) -> npt.NDArray[np.floating[Any]]:
        """Values in ring units plus dither plus one half: [rows, columns]."""
        slab = self._rotation.gather(self._delta, index)
        slab *= slab.dtype.type(self._weight / self._step / math.sqrt(self._part.values.block))
        turned = self._rotation.forward(slab, index)
        flat = turned.reshape(-1)
        words = self._dither.member(start, flat.size, self._place.position, self._place.cohort)
        shift = words.astype(flat.dtype)
        shift *= flat.dtype.type(1 / UNITS)
        flat += shift
        return turned


def _to_words(rounded: npt.NDArray[np.floating[Any]], bits: int) -> ring.Words:
    """Two's complement words of whole numbers; those outside the ring wrap around."""
    whole = rounded.astype(np.int32 if rounded.dtype == np.float32 else np.int64)
    words = whole.reshape(-1).astype(ring.word_dtype(bits))
    ring.reduce_in_place(words, bits)
    return words
