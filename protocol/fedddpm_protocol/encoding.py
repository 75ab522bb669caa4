"""Fixed-point encoding of one institution's update, and the exact decode of the sum.

Values are the weighted delta ``w_i * delta`` with ``w_i = weight units / 65535``, on one common scale with room for the
largest cohort, so that no sum of clipped updates can wrap. Rounding is stochastic (unbiased) from an AES-CTR stream.
Aggregator and institutions derive the next model by the same steps: integers, one float64 factor, one rounding to
float32; the model hash must therefore agree everywhere.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedddpm_protocol import ring
from fedddpm_protocol.chunks import chunk_span
from fedddpm_protocol.errors import EncodingError, NonFiniteError, ResultError, RingOverflowError
from fedddpm_protocol.prg import MaskStream
from fedddpm_protocol.spec import LOSS_LIMIT, LOSS_UNITS, SUM_FIELDS, WEIGHT_UNITS, PartSpec, RoundSpec

Vector = npt.NDArray[np.float32]
_ROUNDING_BITS = 32


def step_of(spec: RoundSpec, part: PartSpec) -> float:
    """Value of one ring unit: every clipped update, rounded either way, fits ``largest_cohort`` times."""
    half: int = 2 ** (part.values.bits - 1)
    return float(spec.clip_norm * spec.largest_cohort / (half - 2 * spec.largest_cohort))


def weight_units(samples: int, spec: RoundSpec) -> int:
    """Weight of an institution in [1, 65535]: its samples over the cap, or full weight where weights are equal."""
    if samples < 1:
        raise EncodingError("an institution without samples has no update to give")
    if spec.weighting == "equal":
        return WEIGHT_UNITS
    return capped_weight(samples, spec.weight_cap)


def capped_weight(samples: int, weight_cap: int) -> int:
    """Samples over the cap in units of 1/65535, at least one unit."""
    return max(1, round(min(samples, weight_cap) * WEIGHT_UNITS / weight_cap))


def mean_losses(sums: Sequence[int], survivors: int) -> tuple[float, float]:
    """Mean loss before and after training behind opened sums (as SUM_FIELDS) of ``survivors`` institutions."""
    _, before, after = sums
    return before / (survivors * LOSS_UNITS), after / (survivors * LOSS_UNITS)


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


def clip_to_norm(delta: Vector, clip_norm: float) -> tuple[Vector, float]:
    """``delta`` scaled down to an L2 norm of at most ``clip_norm``, and the norm it had.

    NonFiniteError if it holds NaN or infinity.
    """
    norm = l2_norm(delta)
    if norm <= clip_norm:
        return delta, norm
    return (delta * np.float32(clip_norm / norm * (1 - 2**-20))).astype(np.float32), norm


def l2_norm(vector: npt.NDArray[np.floating]) -> float:
    """L2 norm in float64; NonFiniteError if the vector holds NaN or infinity."""
    norm = math.sqrt(float(np.dot(wide := vector.astype(np.float64), wide)))
    if not math.isfinite(norm):
        raise NonFiniteError("the update holds NaN or infinity; lower the learning rate or check the images")
    return norm


class ValuesEncoder:
    """Ring words of one update, chunk by chunk, so that masking needs no second whole vector."""

    def __init__(
        self, spec: RoundSpec, part: PartSpec, delta: Vector, weight: int, rounding_seed: bytes | None = None
    ) -> None:
        if delta.dtype != np.float32 or delta.shape != (part.values.coordinates,):
            raise EncodingError(f"{part.values.coordinates} float32 values expected, got {delta.dtype}{delta.shape}")
        norm = l2_norm(delta)
        if norm > spec.clip_norm:
            raise RingOverflowError(f"an update of norm {norm:.6g} exceeds the agreed {spec.clip_norm:.6g}; clip it")
        if not 1 <= weight <= WEIGHT_UNITS:
            raise RingOverflowError(f"a weight of {weight} units is outside 1 to {WEIGHT_UNITS}")
        self._spec, self._part, self._delta = spec, part, delta
        self._factor = weight / WEIGHT_UNITS / step_of(spec, part)
        self._rounding = MaskStream(rounding_seed or secrets.token_bytes(32), "rounding", _ROUNDING_BITS)

    def chunk(self, index: int) -> ring.Words:
        """Words of chunk ``index``; the same ones at every call."""
        start, count = chunk_span(self._part.values, self._spec.chunk_coordinates, index)
        scaled = self._delta[start : start + count].astype(np.float64) * self._factor
        scaled += self._rounding.words(start, count) * 2.0**-_ROUNDING_BITS
        integers = np.floor(scaled, out=scaled).astype(np.int64)
        bits = self._part.values.bits
        if not ring.is_native(bits):
            integers &= 2**bits - 1
        return integers.astype(ring.word_dtype(bits))  # two's complement


def decode_mean(spec: RoundSpec, part: PartSpec, opened: ring.Words, sums: Sequence[int]) -> npt.NDArray[np.float64]:
    """The weighted mean update [coordinates] behind an opened values segment and its opened sums."""
    factor = step_of(spec, part) * WEIGHT_UNITS / sums[0]
    return ring.signed(opened, part.values.bits).astype(np.float64) * factor


def check_opened(
    spec: RoundSpec, part: PartSpec, opened: ring.Words, sums: Sequence[int], survivors: int
) -> npt.NDArray[np.float64]:
    """The decoded mean update; ResultError unless clipped updates of ``survivors`` institutions can give this sum.

    A mean of clipped updates is itself within the clip norm, up to the rounding of every coordinate.
    """
    if opened.shape != (part.values.coordinates,) or opened.dtype != ring.word_dtype(part.values.bits):
        raise ResultError(f"{part.values.coordinates} opened values expected, got {opened.dtype}{opened.shape}")
    if len(sums) != len(SUM_FIELDS) or not survivors <= sums[0] <= survivors * WEIGHT_UNITS:
        raise ResultError(f"the weights of {survivors} institutions cannot sum to {list(sums)[:1]}")
    if any(total >= survivors * LOSS_LIMIT * LOSS_UNITS for total in sums[1:]):
        raise ResultError("an institution reported a loss outside the agreed range")
    mean = decode_mean(spec, part, opened, sums)
    rounding = step_of(spec, part) * survivors * WEIGHT_UNITS / sums[0] * math.sqrt(len(opened))
    norm, limit = l2_norm(mean), spec.clip_norm * (1 + 1e-6) + rounding
    if norm > limit:
        raise ResultError(
            f"the mean update of part {part.name!r} has norm {norm:.4g}, above the agreed {spec.clip_norm:.4g}: "
            "an institution did not clip its update. The round is held and the model stays as it is"
        )
    return mean


def next_model(
    spec: RoundSpec,
    base: Vector,
    opened: Mapping[str, tuple[ring.Words, Sequence[int], int]],
) -> Vector:
    """The next shared model [coordinates of the base manifest].

    ``opened`` maps a part to (opened values, opened sums, number of survivors); a part that is missing keeps its base
    values. ResultError as :func:`check_opened`.
    """
    expected = sum(part.values.coordinates for part in spec.parts)
    if base.dtype != np.float32 or base.shape != (expected,):
        raise ResultError(f"a base model of {expected} float32 values expected, got {base.dtype}{base.shape}")
    pieces: list[Vector] = []
    start = 0
    for part in spec.parts:
        piece = base[start : start + part.values.coordinates]
        start += part.values.coordinates
        if part.name in opened:
            mean = check_opened(spec, part, *opened[part.name])
            piece = (piece.astype(np.float64) + mean).astype(np.float32)
        pieces.append(piece)
    return np.concatenate(pieces)
