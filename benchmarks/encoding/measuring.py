"""The two measurements of encoding_accuracy.py: rings beside other ways, and rounds that differ from the one before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from benchmarks.encoding.ring import (
    FIRST_BITS,
    Opening,
    OwnDithers,
    RingSum,
    Wraps,
    is_rotated,
    room,
    rotated,
    round_spec,
    whole_round,
)
from benchmarks.encoding.schemes import bfloat16_mean, float32_mean, per_tensor_mean
from benchmarks.encoding.updates import UpdateSet, Vector, Wide, nmse, student_t, weighted_mean

from fedddpm_protocol.agreement.model_layout import Manifest
from fedddpm_protocol.agreement.spec import NOTHING_KNOWN, WEIGHT_UNITS, ScaleReference

TARGETS = {(8, 5): 1e-3, (8, 20): 5e-3, (8, 100): 3e-2, (16, 5): 2e-8, (16, 20): 1e-7, (16, 100): 5e-7}
_FALLBACK_BITS = 32  # of an attempt after a sum that was too large for its ring
_SPIKE_ENERGY = 0.5  # of an update, in one coordinate


@dataclass(frozen=True)
class Case:
    """A round to be measured, and what the one before left for its scale."""

    name: str
    manifest: Manifest
    units: tuple[int, ...]
    deltas: Sequence[Vector]
    reference: ScaleReference
    has_targets: bool = True


@dataclass(frozen=True)
class Row:
    """One way of sending a case."""

    updates: str
    members: int
    way: str  # "float32", "bfloat16" or "ring"
    bits: int
    nmse: float
    target: float | None = None  # none is set for this ring, cohort or kind of update
    own_dithers: float | None = None  # NMSE where every member has a dither stream of its own; None: no dither
    per_tensor: float | None = None  # NMSE of a range for each tensor with as many bits; None: no room for the cohort
    room: float | None = None  # norm of the sum that the scale is made for over the norm it has
    wrapped: int | None = None  # coordinates
    accepted: bool = True

    @property
    def met(self) -> bool:
        """Whether the target is reached, or there is none."""
        return self.target is None or self.nmse <= self.target


@dataclass(frozen=True)
class Change:
    """A round unlike the one before, in one ring."""

    what: str
    members: int
    bits: int
    nmse: float  # of the sum, used or not
    wrapped: int
    room: float
    fullness: float  # root mean square of the opened words over half the ring
    accepted: bool


def second_round(updates: UpdateSet) -> Case:
    """Round 1 of made updates after round 0 was opened."""
    reference = opened_before(updates.manifest, updates.draw(0), updates.units)
    return Case(updates.name, updates.manifest, updates.units, updates.draw(1), reference)


def opened_before(manifest: Manifest, deltas: Sequence[Vector], units: Sequence[int]) -> ScaleReference:
    """What a round without history leaves: opened by a ring of 24 bits, or in a second attempt by one of 32."""
    opening = whole_round(manifest, FIRST_BITS, NOTHING_KNOWN, deltas, units, "round before")
    if not opening.accepted:
        opening = whole_round(manifest, _FALLBACK_BITS, NOTHING_KNOWN, deltas, units, "round before, again")
    return opening.reference


def measure_case(case: Case, bits: Sequence[int]) -> Iterator[Row]:
    """All ways of sending one round, one after the other."""
    exact, members = weighted_mean(case.deltas, case.units), len(case.units)
    plain = nmse(float32_mean(case.deltas, case.units), exact)
    half = nmse(bfloat16_mean(case.deltas, case.units), exact)
    yield Row(case.name, members, "float32", 32, plain)
    yield Row(case.name, members, "bfloat16", 16, half)
    rings = [_Ring(case, width) for width in bits]
    for position, (delta, weight) in enumerate(zip(case.deltas, case.units, strict=True)):
        turned = _turned(rings, delta)
        for ring_sum in rings:
            ring_sum.add(position, delta, weight, turned)
    while rings:
        ring_sum = rings.pop(0)  # its arrays are no longer needed then
        tensors = per_tensor_mean(case.deltas, case.units, case.manifest, ring_sum.bits)
        target = TARGETS.get((ring_sum.bits, members)) if case.has_targets else None
        row = ring_sum.row(case.name, exact)
        yield replace(row, target=target, per_tensor=None if tensors is None else nmse(tensors, exact))


def _turned(rings: Sequence[_Ring], delta: Vector) -> Wide | None:
    """The rotated update, which is the same for all rings of a round that rotate."""
    return next((rotated(one.spec, delta) for one in rings if is_rotated(one.spec)), None)


class _Ring:
    """One ring's sum, with a dither of its own for every member beside it where there is dither."""

    def __init__(self, case: Case, bits: int) -> None:
        members = len(case.units)
        self.bits, self.spec = bits, round_spec(case.manifest, bits, case.reference, max(2, members), "round measured")
        self.sum = RingSum(self.spec, members)
        self._wraps = Wraps(self.sum) if is_rotated(self.spec) else None
        self._own = OwnDithers(self.spec, members) if is_rotated(self.spec) else None

    def add(self, position: int, delta: Vector, weight: int, turned: Wide | None) -> None:
        words = self.sum.add(delta, weight)
        if turned is not None and self._wraps is not None and self._own is not None:
            self._wraps.add(position, turned, weight, words)
            self._own.add(position, turned, weight)

    def row(self, name: str, exact: Wide) -> Row:
        opening, members = self.sum.open(), self.sum.members
        return Row(
            name,
            members,
            "ring",
            self.bits,
            nmse(opening.mean, exact),
            own_dithers=None if self._own is None else nmse(self._own.mean(), exact),
            room=None if self._own is None else self.room(exact),
            wrapped=None if self._wraps is None else self._wraps.count,
            accepted=opening.accepted,
        )

    def change(self, name: str, exact: Wide) -> Change:
        opening: Opening = self.sum.open()
        wrapped = 0 if self._wraps is None else self._wraps.count
        error, fullness = nmse(opening.mean, exact), opening.fullness
        return Change(name, self.sum.members, self.bits, error, wrapped, self.room(exact), fullness, opening.accepted)

    def room(self, exact: Wide) -> float:
        needed = float(np.linalg.norm(exact)) * self.sum.weight / WEIGHT_UNITS
        return room(self.spec, self.sum.members) / needed


def measure_changes(manifest: Manifest, bits: Sequence[int]) -> Iterator[Change]:
    """Rounds in which cohort or norm are not those of the round before."""
    for case in changed_cases(manifest):
        exact = weighted_mean(case.deltas, case.units)
        rings = [_Ring(case, width) for width in bits]
        for position, (delta, weight) in enumerate(zip(case.deltas, case.units, strict=True)):
            turned = _turned(rings, delta)
            for ring_sum in rings:
                ring_sum.add(position, delta, weight, turned)
        for ring_sum in rings:
            yield ring_sum.change(case.name, exact)


def changed_cases(manifest: Manifest) -> Iterator[Case]:
    """Student's t among 20 institutions, and what may happen to them from one round to the next."""
    few, many = student_t(manifest, 3), student_t(manifest, 20)
    small, large = (opened_before(manifest, made.draw(0), made.units) for made in (few, many))
    deltas = many.draw(1)
    yield Case("as before: 20 institutions", manifest, many.units, deltas, large)
    yield Case("from 3 institutions to 20", manifest, many.units, deltas, small)
    yield Case("from 20 institutions to 3", manifest, few.units, few.draw(1), large)
    for growth in (1.2, 1.5, 2.0, 3.0):
        longer = [delta * np.float32(growth) for delta in deltas]
        yield Case(f"updates {growth:g} times as long", manifest, many.units, longer, large)
    spiked = [_with_spike(delta) for delta in deltas]
    yield Case("half of the energy in one coordinate", manifest, many.units, spiked, large)
    before = opened_before(manifest, [_with_spike(delta) for delta in many.draw(0)], many.units)
    yield Case("the same again in the round after", manifest, many.units, spiked, before)


def _with_spike(delta: Vector) -> Vector:
    """The same norm, but so much of its energy in the middle coordinate."""
    spiked: Vector = delta * np.float32(np.sqrt(1 - _SPIKE_ENERGY))
    spiked[len(delta) // 2] = np.sqrt(_SPIKE_ENERGY) * np.linalg.norm(delta)
    return spiked
