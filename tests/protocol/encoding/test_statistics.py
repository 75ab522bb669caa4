"""How exact the mean of rotated rings is, and that a sum which does not fit its ring is never used.

Updates have heavy tails (Student's t with three degrees of freedom), a part that all have in common and a part of their
own. As in a run, the scale of a round follows from the opened sum of the round before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
from tests.protocol.support.specs import make_spec
from tests.protocol.support.sums import mean_of, opened_part, summed

from fedddpm_protocol.agreement.model_layout import TensorSpec
from fedddpm_protocol.agreement.spec import NOTHING_KNOWN, WEIGHT_UNITS, RoundSpec, ScaleReference, part_spec
from fedddpm_protocol.encoding.decoder import add_mean, check_opened, measure
from fedddpm_protocol.encoding.rotation import Rotation
from fedddpm_protocol.encoding.scale import step_of
from fedddpm_protocol.errors import WrappedSumError

SIZE = 2**17  # parameters; whole blocks, so that nothing is padding
PAPER = 716_297  # of the decoder in the paper
COMMON = np.float32(np.sqrt(0.3))  # what the institutions agree in has about a third of an update's energy
OWN = np.float32(np.sqrt(0.7))
CHUNK = 2**18
TARGETS = {(8, 5): 1e-3, (8, 20): 5e-3, (8, 100): 3e-2, (16, 5): 2e-8, (16, 20): 1e-7, (16, 100): 5e-7}


def drawn(seed: Sequence[int], size: int) -> np.ndarray:
    """Norm one, or so: the variance is three."""
    values = np.random.default_rng(seed).standard_t(3, size) / np.sqrt(3 * size)
    return values.astype(np.float32)


@lru_cache(maxsize=4)
def updates(members: int, round_: int, size: int = SIZE) -> list[np.ndarray]:
    common = drawn((round_, 0), size) * COMMON
    return [common + drawn((round_, 1 + member), size) * OWN for member in range(members)]


def weights(members: int) -> list[int]:
    return [int(weight) for weight in np.random.default_rng(members).integers(13_000, WEIGHT_UNITS, members)]


def spec_of(bits: int, reference: ScaleReference, members: int, size: int, seed: int = 0) -> RoundSpec:
    part = part_spec("full", (TensorSpec("encoder.w", (size,)),), bits, reference)
    return make_spec(
        parts=(part,),
        clip_norm=10.0,
        largest_cohort=max(2, members),
        chunk_coordinates=CHUNK,
        encoding_seed=bytes([1 + seed]) * 32,
    )


@dataclass(frozen=True)
class Sum:
    """An opened sum beside the mean it stands for."""

    nmse: float
    wrapped: int  # words that are further from their value than rounding can bring them
    used: bool
    reference: ScaleReference


def opened(bits: int, reference: ScaleReference, deltas: Sequence[np.ndarray], units: Sequence[int]) -> Sum:
    members, size = len(deltas), len(deltas[0])
    spec = spec_of(bits, reference, members, size)
    part = spec.parts[0]
    one = opened_part(spec, summed(spec, deltas, units), (sum(units), 0, 0), members)
    mean = np.zeros(size, np.float32)
    add_mean(spec, part, [one], mean)
    exact = sum(delta.astype(np.float64) * weight for delta, weight in zip(deltas, units, strict=True)) / sum(units)
    error = mean - exact
    kept = ScaleReference(1.0, 2, 2)
    try:
        norm = check_opened(spec, part, measure(spec, part, one), one.sums, members, members)
        kept, used = ScaleReference(norm, members, sum(units)), True
    except WrappedSumError:
        used = False
    return Sum(float(error @ error / (exact @ exact)), wrapped_words(spec, error, units), used, kept)


def wrapped_words(spec: RoundSpec, error: np.ndarray, units: Sequence[int]) -> int:
    """Words whose error is not that of rounding: half a step for every member, and a whole one of private noise."""
    part = spec.parts[0]
    rotation = Rotation(spec, part, "f8")
    step = step_of(spec, part, len(units)) * WEIGHT_UNITS / sum(units) * np.sqrt(part.values.block)
    count = 0
    for index in range(-(-part.values.coordinates // CHUNK)):
        slab = rotation.forward(rotation.gather(error.astype(np.float32), index), index)
        count += int(np.count_nonzero(np.abs(slab) > (1.52 * len(units)) * step))
    return count


@lru_cache(maxsize=8)
def known_after(members: int, size: int = SIZE) -> ScaleReference:
    """What the round before left: opened without history, by 24 bits."""
    before = opened(24, NOTHING_KNOWN, updates(members, 0, size), weights(members))
    assert before.used
    return before.reference


@pytest.mark.parametrize("bits", [4, 8])
def test_the_mean_of_many_seeds_is_the_mean(bits: int) -> None:
    """Rotation and dither leave no bias in a weighted sum, not even in a ring of sixteen values."""
    rounds, size, members = 250, 256, 3
    deltas, units = [drawn((9, member), size) for member in range(members)], [65535, 20000, 40000]
    exact = sum(delta.astype(np.float64) * weight for delta, weight in zip(deltas, units, strict=True)) / sum(units)
    reference = ScaleReference(1.3 * float(np.linalg.norm(exact)), members, sum(units))
    errors = np.empty((rounds, size))
    for number in range(rounds):
        spec = make_spec(
            parts=spec_of(bits, reference, members, size).parts,
            clip_norm=10.0,
            chunk_coordinates=CHUNK,
            encoding_seed=number.to_bytes(32, "big"),
        )
        errors[number] = mean_of(spec, deltas, units) - exact
    standard = errors.std(axis=0) / np.sqrt(rounds)
    assert (np.abs(errors.mean(axis=0)) < 4.5 * standard).all()
    assert np.sqrt(np.mean((errors.mean(axis=0) / standard) ** 2)) < 1.2


@pytest.mark.parametrize("members", [5, 20, 100])
def test_the_error_of_the_mean_stays_below_its_targets(members: int) -> None:
    deltas, units = updates(members, 1), weights(members)
    for bits in (8, 16):
        result = opened(bits, known_after(members), deltas, units)
        assert result.used
        assert result.wrapped <= 2  # of 131,072: a coordinate of six deviations is rare, and only as wrong as others
        assert result.nmse <= TARGETS[bits, members], f"{bits} bits"


@pytest.mark.parametrize(("before", "now"), [(3, 20), (20, 3)])
def test_another_cohort_than_before_does_not_wrap(before: int, now: int) -> None:
    for bits, bound in ((6, 0.3), (8, 0.02), (16, 4e-7)):
        result = opened(bits, known_after(before), updates(now, 1), weights(now))
        assert result.used
        assert result.wrapped == 0
        assert result.nmse < bound


@pytest.mark.parametrize(("bits", "bound"), [(8, 2e-2), (16, 2e-2)])
def test_a_sum_that_grew_is_right_or_not_used(bits: int, bound: float) -> None:
    """The energy of the opened words tells before wrapped words matter."""
    used = []
    for growth in np.linspace(1.0, 3.0, 9):
        longer = [delta * np.float32(growth) for delta in updates(5, 1)]
        result = opened(bits, known_after(5), longer, weights(5))
        assert result.nmse < bound or not result.used, f"{growth:.2f} times"
        used.append(result.used)
    assert used[0]
    assert not any(used[4:])  # twice as long and more


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("size", [SIZE, PAPER])
def test_one_coordinate_with_half_of_the_energy_is_right_or_not_used(bits: int, size: int) -> None:
    spiked = []
    for delta in updates(3, 1, size):
        with_spike = delta * np.float32(np.sqrt(0.5))
        with_spike[size // 2] = np.sqrt(0.5) * np.linalg.norm(delta)
        spiked.append(with_spike)
    result = opened(bits, known_after(3, size), spiked, weights(3))
    assert result.nmse < 0.02 or not result.used
