"""From opened sums to the next model, the same bits for everybody.

Opened words and dithers are whole numbers, and the inverse rotation only adds and subtracts them: below 2^53 float64
does that exactly, in whatever order a machine's BLAS adds. One float64 factor turns them into values, which are added
to the base model and rounded to float32 once. So aggregator and institutions derive the same model, and its hash must
agree everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedddpm_protocol.agreement.chunks import chunk_count, chunk_span
from fedddpm_protocol.agreement.methods import part_of, sessions_by_part
from fedddpm_protocol.agreement.model_layout import Vector
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.spec import (
    EQUAL,
    LOSS_LIMIT,
    LOSS_UNITS,
    ROTATED,
    SUM_FIELDS,
    WEIGHT_UNITS,
    PartSpec,
    RoundSpec,
)
from fedddpm_protocol.encoding.dither import UNITS, Dither, total_table
from fedddpm_protocol.encoding.outer import step_outward
from fedddpm_protocol.encoding.rotation import Rotation
from fedddpm_protocol.encoding.scale import Energy, step_of
from fedddpm_protocol.errors import ResultError, WrappedSumError
from fedddpm_protocol.primitives import ring

_PIECE = 2**18  # coordinates
_CLIPPING = 1e-6  # how far float32 may leave a clipped norm above the agreed one


@dataclass(frozen=True)
class OpenedPart:
    """One opened sum; ``chunk`` reads the words of one chunk of the values."""

    chunk: Callable[[int], ring.Words]
    sums: Sequence[int]  # opened weights segment, as SUM_FIELDS
    cohort: Sequence[str]
    survivors: Sequence[str]


def measure(spec: RoundSpec, part: PartSpec, opened: OpenedPart) -> Energy:
    """The energy of all opened values; ResultError for a chunk of a wrong size."""
    energy = Energy(part)
    for index in range(chunk_count(part.values, spec.chunk_coordinates)):
        energy.add(_words(spec, part, opened, index))
    return energy


def check_opened(
    spec: RoundSpec, part: PartSpec, energy: Energy, sums: Sequence[int], cohort: int, survivors: int
) -> float:
    """The norm that the next scale follows from.

    WrappedSumError if the sum was too large for its ring; ResultError unless clipped updates of ``survivors``
    institutions can give it: a mean of clipped updates is itself within the clip norm, up to the rounding.
    """
    if not energy.complete:
        raise ResultError(f"{part.values.coordinates} opened values of part {part.name!r} expected")
    if len(sums) != len(SUM_FIELDS) or not survivors <= sums[0] <= survivors * WEIGHT_UNITS:
        raise ResultError(f"the weights of {survivors} institutions cannot sum to {list(sums)[:1]}")
    if any(total >= survivors * LOSS_LIMIT * LOSS_UNITS for total in sums[1:]):
        raise ResultError("an institution reported a loss outside the agreed range")
    if energy.wrapped:
        raise WrappedSumError(
            f"the sum of part {part.name!r} is larger than its ring of {part.values.bits} bits was made for and is not "
            "used; the next attempt has a wider one"
        )
    unit, rounding = _unit_and_rounding(spec, part, cohort, sums[0], survivors)
    norm, limit = energy.root_mean_square * unit, spec.clip_norm * (1 + _CLIPPING) + rounding
    if norm > limit:
        raise ResultError(
            f"the mean update of part {part.name!r} has norm {norm:.4g}, above the agreed {spec.clip_norm:.4g}: "
            "an institution did not clip its update. The round is held and the model stays as it is"
        )
    return energy.reference * unit


def check_single(
    spec: RoundSpec, part: PartSpec, energy: Energy, sums: Sequence[int], cohort: int
) -> tuple[float, float]:
    """The norm of one member's own words (``energy``, its weights segment ``sums``), and the largest that it may have.

    ResultError if its weight or a loss is outside what was agreed. A norm that is too large raises nothing.
    """
    if not energy.complete or len(sums) != len(SUM_FIELDS):
        raise ResultError(f"{part.values.coordinates} values of part {part.name!r} and their sums expected")
    weight, *losses = sums
    least = WEIGHT_UNITS if spec.weighting == EQUAL else 1
    if not least <= weight <= WEIGHT_UNITS:
        raise ResultError(f"a weight of {weight} units is outside {least} to {WEIGHT_UNITS}")
    if any(loss >= LOSS_LIMIT * LOSS_UNITS for loss in losses):
        raise ResultError("a loss is outside the agreed range")
    unit, rounding = _unit_and_rounding(spec, part, cohort, weight, 1)
    return energy.root_mean_square * unit, spec.clip_norm * (1 + _CLIPPING) + rounding


def _unit_and_rounding(
    spec: RoundSpec, part: PartSpec, cohort: int, weight: int, survivors: int
) -> tuple[float, float]:
    """Norm of a mean update of one step everywhere, and how far rounding moves one."""
    unit = step_of(spec, part, cohort) * WEIGHT_UNITS / weight * math.sqrt(part.values.coordinates)
    return unit, unit * (math.sqrt(survivors) if part.values.encoding == ROTATED else survivors)


def check_move(
    spec: RoundSpec, result: RoundResult, base: Vector, model: Vector, averaged: Vector | None = None
) -> None:
    """ResultError if ``model`` is further from ``base`` than the mean of clipped updates can be, in any part.

    For who takes a signed model without its opened sums: what :func:`check_opened` says of these holds for it too.
    With outer momentum ``model`` is the averaged model, and ``averaged`` that of the round before, which a part keeps
    that was not opened.
    """
    for part, piece in spec.places:
        opened = [one for one in result.parts if one.opened and part_of(one.part) == part.name]
        rounding = (
            _unit_and_rounding(spec, part, len(one.cohort), one.sums[0], len(one.survivors))[1] for one in opened
        )
        # Once for the opened words, once for their dither, and float32 for the model itself.
        limit = spec.clip_norm * (1 + _CLIPPING) + 2 * max(rounding) if opened else 0.0
        limit *= spec.outer.learning_rate
        before = base if opened or averaged is None else averaged
        moved, size = _distance(model[piece], before[piece]), _distance(model[piece])
        if not math.isfinite(size) or moved > limit + float(np.finfo(np.float32).eps) * size:
            raise ResultError(
                f"the signed model moved part {part.name!r} by {moved:.4g}; updates within {spec.clip_norm:.4g} cannot",
                "aggregator",
            )


def _distance(vector: Vector, other: Vector | None = None) -> float:
    """L2 norm of a difference, summed in float64 piece by piece; not finite where the vector is not."""
    total = 0.0
    for start in range(0, len(vector), _PIECE):
        wide = vector[start : start + _PIECE].astype(np.float64)
        if other is not None:
            wide -= other[start : start + _PIECE]
        total += float(wide @ wide)
    return math.sqrt(total) if math.isfinite(total) else math.inf


@dataclass(frozen=True, eq=False)
class NextModel:
    """What a round makes of a base model."""

    base: Vector  # [coordinates of the base manifest], which the next round's updates are measured against
    averaged: Vector | None  # the same of the averaged model, with outer momentum
    norms: dict[str, float]  # by session, what scales follow from


def next_model(spec: RoundSpec, base: Vector, opened: Mapping[str, OpenedPart]) -> Vector:
    """The next shared model [coordinates of the base manifest]; see :func:`derive_model`."""
    return derive_model(spec, base, opened).base


def derive_model(
    spec: RoundSpec, base: Vector, opened: Mapping[str, OpenedPart], averaged: Vector | None = None
) -> NextModel:
    """What follows from a base model, and with outer momentum from the ``averaged`` model of the round before.

    Before the first round that is the base model. ResultError as :func:`advance_model`.
    """
    model, mean = base.copy(), None
    if spec.outer.momentum:
        mean = (base if averaged is None else averaged).copy()
    return NextModel(model, mean, advance_model(spec, model, opened, mean))


def advance_model(
    spec: RoundSpec, model: Vector, opened: Mapping[str, OpenedPart], averaged: Vector | None = None
) -> dict[str, float]:
    """Turn a base model [coordinates of the base manifest] into the next one, in place and chunk by chunk.

    With outer momentum the ``averaged`` model of the round before becomes that of this round, too.
    Returns by session the norm that the next scale follows from. ``opened`` is by session: of a part that has shards,
    those that were opened; their members are averaged as if they stood in one sum. A part of which none is there keeps
    its base values. ResultError as :func:`check_opened`; the models are of no use then.
    """
    expected = sum(part.parameters for part in spec.parts)
    if bool(spec.outer.momentum) != (averaged is not None):
        raise ValueError("an averaged model goes with outer momentum")
    for vector in (model,) if averaged is None else (model, averaged):
        if vector.dtype != np.float32 or vector.shape != (expected,):
            raise ResultError(f"a base model of {expected} float32 values expected, got {vector.dtype}{vector.shape}")
    norms = {}
    for part, here in spec.places:
        piece = model[here]
        shards = sessions_by_part(opened).get(part.name, ())
        for session in shards:
            one = opened[session]
            energy = measure(spec, part, one)
            norms[session] = check_opened(spec, part, energy, one.sums, len(one.cohort), len(one.survivors))
        if shards:
            add_mean(spec, part, [opened[session] for session in shards], piece, spec.outer.learning_rate)
        if averaged is not None:
            step_outward(spec, piece, averaged[here], opened=bool(shards))
    return norms


def add_mean(
    spec: RoundSpec, part: PartSpec, opened: Sequence[OpenedPart], onto: Vector, learning_rate: float = 1.0
) -> None:
    """Add ``learning_rate`` times the weighted mean update behind opened sums to ``onto`` [parameters], in place.

    The sums are those of the part's shards, in their order; one, where there are no shards.
    """
    weight = sum(one.sums[0] for one in opened)
    factors = [step_of(spec, part, len(one.cohort)) * WEIGHT_UNITS / weight * learning_rate for one in opened]
    if part.values.encoding == ROTATED:
        return _add_rotated(spec, part, opened, onto, factors)
    for index in range(chunk_count(part.values, spec.chunk_coordinates)):
        start, count = chunk_span(part.values, spec.chunk_coordinates, index)
        base = onto[start : start + count].astype(np.float64)
        for one, factor in zip(opened, factors, strict=True):
            mean = ring.signed_floats(_words(spec, part, one, index), part.values.bits)
            mean *= factor
            base += mean
        onto[start : start + count] = base
    return None


def _add_rotated(
    spec: RoundSpec, part: PartSpec, opened: Sequence[OpenedPart], onto: Vector, factors: Sequence[float]
) -> None:
    rotation, dither = Rotation(spec, part, "f8"), Dither(spec, part)
    tables = [_dither_table(one) for one in opened]
    # H is not normalised, so going back multiplies by sqrt(block); dithers are counted in parts of a step.
    units_of_a_step = UNITS * math.sqrt(part.values.block)
    memory = np.empty((2, min(spec.chunk_coordinates, part.values.coordinates)))
    for index in range(chunk_count(part.values, spec.chunk_coordinates)):
        start, count = chunk_span(part.values, spec.chunk_coordinates, index)
        units, dithers = memory[0, :count], memory[1, :count]
        base = rotation.gather(onto, index)
        for one, table, factor in zip(opened, tables, factors, strict=True):
            units[:] = ring.signed(_words(spec, part, one, index), part.values.bits)
            units *= UNITS
            dither.total(start, table, dithers)
            units -= dithers
            mean = rotation.back(units.reshape(part.values.rows, -1), index)
            mean *= factor / units_of_a_step
            base += mean
        rotation.scatter(base, index, onto)


def _dither_table(opened: OpenedPart) -> npt.NDArray[np.float64]:
    places = (list(opened.cohort).index(member) for member in opened.survivors)
    return total_table(places, len(opened.cohort))


def _words(spec: RoundSpec, part: PartSpec, opened: OpenedPart, index: int) -> ring.Words:
    words = opened.chunk(index)
    _, count = chunk_span(part.values, spec.chunk_coordinates, index)
    if words.shape != (count,) or words.dtype != ring.word_dtype(part.values.bits):
        raise ResultError(f"{count} opened values expected in chunk {index}, got {words.dtype}{words.shape}")
    return words
