"""The protocol's own encoding and decoding for encoding_accuracy.py, from updates to the mean that everybody derives.

Masks are left out: they cancel exactly, so the opened words are the sum of the encoded ones modulo 2^bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from benchmarks.aggregation.sum_spec import sum_spec
from benchmarks.encoding.updates import Vector, Wide

from fedddpm_protocol.agreement.chunks import chunk_count, chunk_span
from fedddpm_protocol.agreement.methods import DECODER, Method
from fedddpm_protocol.agreement.model_layout import Manifest
from fedddpm_protocol.agreement.spec import (
    CHUNK_COORDINATES,
    NOTHING_KNOWN,
    ROTATED,
    WEIGHT_UNITS,
    RoundSpec,
    ScaleReference,
    part_spec,
)
from fedddpm_protocol.encoding.decoder import OpenedPart, add_mean, check_opened, measure
from fedddpm_protocol.encoding.dither import UNITS, Dither
from fedddpm_protocol.encoding.encoder import Place, ValuesEncoder
from fedddpm_protocol.encoding.rotation import Rotation
from fedddpm_protocol.encoding.scale import predicted_norm, step_of
from fedddpm_protocol.errors import WrappedSumError
from fedddpm_protocol.primitives import ring

CLIP_NORM = 4.0  # four times the norm of the made updates
FIRST_BITS = 24  # of a run's first round, which knows nothing of its scale


def round_spec(manifest: Manifest, bits: int, reference: ScaleReference, largest_cohort: int, name: str) -> RoundSpec:
    """A round of UDEC with one part; ``name`` decides its rotation and dither."""
    return sum_spec(
        Method.UDEC,
        part_spec(DECODER, manifest, bits, reference),
        clip_norm=CLIP_NORM,
        largest_cohort=largest_cohort,
        chunk_coordinates=CHUNK_COORDINATES,
        encoding_seed=hashlib.sha256(name.encode()).digest(),
    )


@dataclass(frozen=True)
class Opening:
    """What a sum came to."""

    mean: Vector  # [parameters]: the change of the next model
    reference: ScaleReference  # for the next round; nothing where the sum is not used
    accepted: bool  # False: WrappedSumError
    fullness: float  # root mean square of the opened words over half the ring


class RingSum:
    """The opened sum of a cohort, one member after the other, each by the protocol's own encoder."""

    def __init__(self, spec: RoundSpec, members: int) -> None:
        self.spec, self.part, self.members = spec, spec.parts[0], members
        self._total = ring.zeros(self.part.values.coordinates, self.part.values.bits)
        self._units: list[int] = []

    def add(self, delta: Vector, weight: int) -> ring.Words:
        """Encode and add the update of the next member; its words [coordinates]."""
        place, bits = Place(len(self._units), self.members), self.part.values.bits
        encoder = ValuesEncoder(self.spec, self.part, delta, weight, place, rounding_seed=bytes([place.position]) * 32)
        indices = range(chunk_count(self.part.values, self.spec.chunk_coordinates))
        words: ring.Words = np.concatenate([encoder.chunk(index) for index in indices])
        ring.add_in_place(self._total, words, bits)
        self._units.append(weight)
        return words

    @property
    def opened(self) -> ring.Words:
        """The sum modulo 2^bits [coordinates]."""
        return self._total

    @property
    def weight(self) -> int:
        """Sum of the weights, in units."""
        return sum(self._units)

    def open(self) -> Opening:
        """Decode; the mean of a sum that is not used is told as well."""
        part, members = self.part, [f"site-{number:03d}" for number in range(self.members)]
        one = OpenedPart(self._chunk, (self.weight, 0, 0), members, members)
        energy, mean = measure(self.spec, part, one), np.zeros(part.parameters, np.float32)
        add_mean(self.spec, part, [one], mean)
        fullness = energy.root_mean_square / 2 ** (part.values.bits - 1)
        try:
            norm = check_opened(self.spec, part, energy, one.sums, self.members, self.members)
        except WrappedSumError:
            return Opening(mean, NOTHING_KNOWN, False, fullness)
        return Opening(mean, ScaleReference(norm, self.members, one.sums[0]), True, fullness)

    def _chunk(self, index: int) -> ring.Words:
        start, count = chunk_span(self.part.values, self.spec.chunk_coordinates, index)
        return self._total[start : start + count]


def whole_round(
    manifest: Manifest, bits: int, reference: ScaleReference, deltas: Sequence[Vector], units: Sequence[int], name: str
) -> Opening:
    """A whole round."""
    total = RingSum(round_spec(manifest, bits, reference, max(2, len(units)), name), len(units))
    for delta, weight in zip(deltas, units, strict=True):
        total.add(delta, weight)
    return total.open()


def rotated(spec: RoundSpec, delta: Vector) -> Wide:
    """``delta`` as the ring carries it, in float64 and not scaled: words [coordinates] of the same norm."""
    part = spec.parts[0]
    rotation = Rotation(spec, part, "f8")
    slabs = [
        rotation.forward(rotation.gather(delta, index), index).flatten()
        for index in range(chunk_count(part.values, spec.chunk_coordinates))
    ]
    words: Wide = np.concatenate(slabs)
    words /= np.sqrt(part.values.block)
    return words


def turned_back(spec: RoundSpec, words: Wide) -> Vector:
    """Inverse of :func:`rotated`."""
    part, vector = spec.parts[0], np.zeros(spec.parts[0].parameters, np.float32)
    rotation = Rotation(spec, part, "f8")
    for index in range(chunk_count(part.values, spec.chunk_coordinates)):
        start, count = chunk_span(part.values, spec.chunk_coordinates, index)
        shape = rotation.gather(vector, index).shape
        slab = words[start : start + count].reshape(shape) / np.sqrt(part.values.block)
        rotation.scatter(rotation.back(slab, index), index, vector)
    return vector


class Wraps:
    """Counts coordinates whose opened value is not the whole-number sum of what the members sent."""

    def __init__(self, total: RingSum) -> None:
        self._sum, self._bits = total, total.part.values.bits
        self._step = step_of(total.spec, total.part, total.members)
        self._dither = Dither(total.spec, total.part)
        self._true = np.zeros(total.part.values.coordinates, np.int64)

    def add(self, position: int, turned: Wide, weight: int, words: ring.Words) -> None:
        """``turned`` is the member's update as :func:`rotated`, ``words`` what it sent."""
        dither = self._dither.member(0, len(words), position, self._sum.members)
        near = turned * (weight / WEIGHT_UNITS / self._step) + dither / UNITS - 0.5  # within one of the whole number
        whole = ring.signed(words, self._bits)
        self._true += whole + (np.rint((near - whole) / 2**self._bits).astype(np.int64) << self._bits)

    @property
    def count(self) -> int:
        """Coordinates that have wrapped around."""
        return int(np.count_nonzero(ring.signed(self._sum.opened, self._bits) != self._true))


class OwnDithers:
    """The same ring, rotation and scale, but every member's dither comes from a stream of its own."""

    def __init__(self, spec: RoundSpec, members: int) -> None:
        self._spec, self._members = spec, members
        self._step = step_of(spec, spec.parts[0], members)
        self._whole, self._dithers, self._weight = 0, 0.0, 0

    _whole: npt.NDArray[np.int64] | int
    _dithers: Wide | float

    def add(self, position: int, turned: Wide, weight: int) -> None:
        """Round and add one update as :func:`rotated`."""
        dither = np.random.default_rng([3, position]).random(len(turned)) - 0.5
        self._whole += np.floor(turned * (weight / WEIGHT_UNITS / self._step) + dither + 0.5).astype(np.int64)
        self._dithers += dither
        self._weight += weight

    def mean(self) -> Vector:
        """The decoded mean [parameters]."""
        bits = self._spec.parts[0].values.bits
        half = 2 ** (bits - 1)
        opened = (np.asarray(self._whole) + half) % 2**bits - half
        return turned_back(self._spec, (opened - self._dithers) * (self._step * WEIGHT_UNITS / self._weight))


def room(spec: RoundSpec, members: int) -> float:
    """The norm of the weighted sum that the scale was made for."""
    return predicted_norm(spec, spec.parts[0], members)


def is_rotated(spec: RoundSpec) -> bool:
    """Whether the ring is narrow enough to be rotated."""
    return spec.parts[0].values.encoding == ROTATED
