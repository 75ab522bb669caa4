"""The encoding of one update: what is refused, what is exact, what is unbiased, and how many bytes it takes."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from tests.protocol.support.specs import make_spec
from tests.protocol.support.sums import encoded, mean_of, random_deltas, summed, with_reference

from fedddpm_protocol.agreement.chunks import chunk_bytes, chunk_count
from fedddpm_protocol.agreement.spec import (
    LOSS_LIMIT,
    LOSS_UNITS,
    NOTHING_KNOWN,
    RINGS,
    WEIGHT_UNITS,
    ScaleReference,
)
from fedddpm_protocol.encoding.dither import UNITS, Dither
from fedddpm_protocol.encoding.encoder import (
    Place,
    ValuesEncoder,
    fit_to_norm,
    l2_norm,
    loss_units,
    sums_words,
    weight_units,
)
from fedddpm_protocol.encoding.rotation import Rotation
from fedddpm_protocol.encoding.scale import step_of
from fedddpm_protocol.errors import EncodingError, NonFiniteError, RingOverflowError
from fedddpm_protocol.primitives import ring

SIZE = 60
FIRST = Place(0, 5)


@pytest.mark.parametrize("n", [2, 5, 100])
def test_the_mean_is_off_by_less_than_one_step_each_in_a_wide_ring(n: int) -> None:
    spec = make_spec(coordinates=SIZE, largest_cohort=n)
    deltas, weights = random_deltas(n, spec.clip_norm), [1 + (index * 977) % WEIGHT_UNITS for index in range(n)]
    exact = np.average(np.array(deltas, np.float64), axis=0, weights=weights)
    bound = n * step_of(spec, spec.parts[0], n) * WEIGHT_UNITS / sum(weights)
    # The mean comes as float32 on a base of zeros.
    assert np.abs(mean_of(spec, deltas, weights) - exact).max() <= bound + np.abs(exact).max() * 2**-23


@pytest.mark.parametrize("sign", [1, -1])
def test_no_sum_of_clipped_updates_wraps_in_a_wide_ring(sign: int) -> None:
    """The largest cohort, everybody with full weight and the whole norm in one and the same coordinate."""
    n = 128
    spec = make_spec(coordinates=SIZE, largest_cohort=n)
    delta = np.zeros(SIZE, np.float32)
    delta[7] = sign * spec.clip_norm
    words = summed(spec, [delta] * n, [WEIGHT_UNITS] * n)
    opened = ring.signed(words, 32)
    assert int(opened[7]) * sign > 0  # a wrapped sum has the other sign
    assert abs(int(opened[7])) + n < 2**31  # what rounds up every time still fits: one unit more for everybody
    assert mean_of(spec, [delta] * n, [WEIGHT_UNITS] * n)[7] == pytest.approx(sign * spec.clip_norm, rel=1e-6)


@pytest.mark.parametrize("bits", [bits for bits in RINGS if bits != 32])
@pytest.mark.parametrize("size", [20, 60, 1000, 5003])
def test_a_rotated_update_comes_back_as_exactly_as_its_ring_allows(bits: int, size: int) -> None:
    spec = make_spec(bits=bits, coordinates=size, clip_norm=1.0)
    part, deltas = spec.parts[0], random_deltas(3, 1.0, size=size)
    exact = np.average(np.array(deltas, np.float64), axis=0, weights=[9000, 20000, 65535])
    mean = mean_of(spec, deltas, [9000, 20000, 65535])
    # Rounding errors are uniform in one step each; rotating spreads them, and the padding takes a part of them away.
    deviation = step_of(spec, part, 3) * WEIGHT_UNITS / 94535 * math.sqrt(3 / 12)
    measured = math.sqrt(float(np.mean((mean - exact) ** 2)))
    assert measured <= 2.5 * deviation + 2**-24  # three times the variance where rounding is private
    if size > 1000 and bits < 24:
        assert measured >= 0.5 * deviation


@pytest.mark.parametrize("bits", RINGS)
def test_padding_and_packing_cost_at_most_one_per_cent(bits: int) -> None:
    for parameters in (716_297, 2_996_315, 12_345, 99_991, 6_401, 1_654_356):
        spec = make_spec(bits=bits, coordinates=parameters, chunk_coordinates=2**18)
        values = spec.parts[0].values
        chunks = range(chunk_count(values, spec.chunk_coordinates))
        sent = sum(chunk_bytes(values, spec.chunk_coordinates, index) for index in chunks)
        assert parameters * bits / 8 <= sent <= 1.01 * parameters * bits / 8


def test_one_institution_over_the_norm_raises() -> None:
    for bits in (8, 32):
        spec = make_spec(bits=bits, coordinates=SIZE)
        delta = np.zeros(SIZE, np.float32)
        delta[0] = np.nextafter(np.float32(spec.clip_norm), np.float32(9))
        with pytest.raises(RingOverflowError):
            ValuesEncoder(spec, spec.parts[0], delta, WEIGHT_UNITS, FIRST)
        with pytest.raises(RingOverflowError):
            ValuesEncoder(spec, spec.parts[0], delta * np.float32(1e20), WEIGHT_UNITS, FIRST)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_raise(value: float) -> None:
    spec = make_spec(coordinates=SIZE)
    delta = np.zeros(SIZE, np.float32)
    delta[3] = value
    with pytest.raises(NonFiniteError):
        ValuesEncoder(spec, spec.parts[0], delta, WEIGHT_UNITS, FIRST)
    with pytest.raises(NonFiniteError):
        fit_to_norm(delta, 1.0)
    with pytest.raises(NonFiniteError):
        loss_units(value)
    with pytest.raises(NonFiniteError):
        sums_words(spec.parts[0], 5, value, 0.1)


def test_an_absurd_update_is_refused_instead_of_clipped() -> None:
    with pytest.raises(EncodingError, match="diverged"):
        fit_to_norm(np.full(SIZE, 1e8, np.float32), 1.0)
    factor, norm = fit_to_norm(np.full(SIZE, 1e3, np.float32), 1.0)
    assert 0 < factor < 1 < norm


@pytest.mark.parametrize("bits", [8, 16, 24])
def test_words_are_whole_numbers_however_small_the_agreed_scale(bits: int) -> None:
    """Far beyond its ring an update wraps around as whole numbers do; it must not become what a cast makes of it."""
    delta = random_deltas(1, 1.0, size=5000)[0]
    for exponent in (-1, -12, -24):
        reference = ScaleReference(2.0**exponent, 3, 3 * WEIGHT_UNITS)
        spec = with_reference(make_spec(bits=bits, coordinates=5000), reference)
        part = spec.parts[0]
        rotation = Rotation(spec, part, "f8")
        exact = rotation.forward(rotation.gather(delta, 0), 0).reshape(-1) / math.sqrt(part.values.block)
        exact /= step_of(spec, part, 5)
        exact += Dither(spec, part).member(0, len(exact), 0, 5) / UNITS
        apart = np.floor(exact).astype(np.int64) - ring.signed(encoded(spec, delta, WEIGHT_UNITS), bits)
        assert np.abs((apart + 1) % 2**bits).max() <= 2  # one more or less where float32 was at an edge


@pytest.mark.parametrize("norm", [5e-324, 1e-200, 1e-13])
def test_a_scale_from_next_to_nothing_is_refused(norm: float) -> None:
    with pytest.raises(ValueError, match="no scale can follow"):
        ScaleReference(norm, 3, 300)
    assert ScaleReference.after(norm, 3, 300) == NOTHING_KNOWN


def test_an_update_absurdly_beyond_the_scale_is_refused() -> None:
    spec = make_spec(bits=24, coordinates=SIZE, clip_norm=1e9)
    spec = with_reference(spec, ScaleReference(1e-12, 3, 3))
    delta = random_deltas(1, 1e6)[0]
    with pytest.raises(RingOverflowError, match="absurd"):
        ValuesEncoder(spec, spec.parts[0], delta, WEIGHT_UNITS, FIRST)


@pytest.mark.parametrize(
    "delta", [np.zeros(SIZE), np.zeros(SIZE + 1, np.float32), np.zeros(SIZE - 1, np.float32), np.zeros((1, SIZE), "f4")]
)
def test_a_vector_of_another_size_or_type_raises(delta: Any) -> None:
    for bits in (8, 32):
        spec = make_spec(bits=bits, coordinates=SIZE)
        with pytest.raises(EncodingError):
            ValuesEncoder(spec, spec.parts[0], delta, WEIGHT_UNITS, FIRST)


@pytest.mark.parametrize("weight", [0, -1, WEIGHT_UNITS + 1])
def test_a_weight_out_of_range_raises(weight: int) -> None:
    spec = make_spec(coordinates=SIZE)
    with pytest.raises(RingOverflowError):
        ValuesEncoder(spec, spec.parts[0], np.zeros(SIZE, np.float32), weight, FIRST)
    with pytest.raises(RingOverflowError):
        sums_words(spec.parts[0], weight, 0.1, 0.1)


def test_weights_and_losses() -> None:
    spec = make_spec(weight_cap=1000)
    assert [weight_units(samples, spec) for samples in (1, 500, 1000, 10**9)] == [66, 32768, WEIGHT_UNITS, WEIGHT_UNITS]
    assert weight_units(1, make_spec(weight_cap=10**9)) == 1
    assert weight_units(7, make_spec(weighting="equal")) == WEIGHT_UNITS
    with pytest.raises(EncodingError):
        weight_units(0, spec)
    assert loss_units(-1.0) == 0
    assert loss_units(0.5) == LOSS_UNITS // 2
    assert loss_units(1e9) == int(LOSS_LIMIT) * LOSS_UNITS - 1


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_rounding_is_unbiased(bits: int) -> None:
    """The mean over many seeds lies within five standard errors of the value, rotated or not."""
    rounds, size = 1500, 64
    delta = random_deltas(1, 2.0, size=size)[0]
    total, squares = np.zeros(size), np.zeros(size)
    for index in range(rounds):
        spec = make_spec(bits=bits, coordinates=size, encoding_seed=index.to_bytes(32, "big"))
        got = mean_of(spec, [delta], [WEIGHT_UNITS])
        total += got
        squares += (got - delta) ** 2
    spread = np.sqrt(squares / rounds / rounds)
    assert (np.abs(total / rounds - delta) <= 5 * spread + 1e-7).all()


def test_stochastic_rounding_is_unbiased() -> None:
    rounds = 1500
    spec = make_spec(coordinates=SIZE)
    part = spec.parts[0]
    delta = (np.linspace(0, 3.7, SIZE) * step_of(spec, part, 5)).astype(np.float32)
    total = np.zeros(SIZE)
    for index in range(rounds):
        total += ring.signed(encoded(spec, delta, WEIGHT_UNITS, FIRST, index.to_bytes(32, "big")), 32)
    wanted = delta.astype(np.float64) / step_of(spec, part, 5)
    spread = np.sqrt((wanted % 1) * (1 - wanted % 1) / rounds)
    assert (np.abs(total / rounds - wanted) <= 5 * spread + 1e-5).all()


@pytest.mark.parametrize("bits", [8, 20, 32])
def test_a_chunk_is_the_same_at_every_call_in_any_order(bits: int) -> None:
    spec = make_spec(bits=bits, coordinates=3 * 4096 + 5, chunk_coordinates=4096)
    delta = random_deltas(1, spec.clip_norm, size=3 * 4096 + 5)[0]
    encoder = ValuesEncoder(spec, spec.parts[0], delta, 12345, FIRST)
    chunks = [encoder.chunk(index) for index in (2, 0, 2, 0)]
    np.testing.assert_array_equal(chunks[0], chunks[2])
    np.testing.assert_array_equal(chunks[1], chunks[3])
    assert (chunks[0] != chunks[1]).any()


def test_stochastic_rounding_is_fresh_for_every_encoder() -> None:
    spec = make_spec(coordinates=SIZE)
    delta = random_deltas(1, spec.clip_norm)[0]
    assert any((encoded(spec, delta, 12345) != encoded(spec, delta, 12345)).any() for _ in range(5))


def test_rotation_and_dither_follow_the_seed_of_the_attempt_and_the_part() -> None:
    delta = random_deltas(1, 2.0, size=4096)[0]
    first = encoded(make_spec(bits=8, coordinates=4096), delta, WEIGHT_UNITS)
    again = encoded(make_spec(bits=8, coordinates=4096), delta, WEIGHT_UNITS)
    other = encoded(make_spec(bits=8, coordinates=4096, encoding_seed=b"\x09" * 32), delta, WEIGHT_UNITS)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5
    neighbour = encoded(make_spec(bits=8, coordinates=4096), delta, WEIGHT_UNITS, Place(1, 5))
    assert 0 < (first != neighbour).mean() < 1  # the same rotation, the dither a fifth of a step on


def test_scaling_down_is_part_of_the_encoding() -> None:
    """An update above the norm needs no copy: its factor counts as the weight does."""
    for bits in (8, 16, 32):
        spec = make_spec(bits=bits, coordinates=4096)
        delta = random_deltas(1, 10.0, size=4096)[0]
        factor, norm = fit_to_norm(delta, spec.clip_norm)
        assert norm == pytest.approx(10.0, rel=1e-5)
        words = encoded(spec, delta, WEIGHT_UNITS, factor=factor, seed=b"\x01" * 32)
        scaled = encoded(spec, (delta * np.float32(factor)).astype(np.float32), WEIGHT_UNITS, seed=b"\x01" * 32)
        apart = ring.signed(words, bits) - ring.signed(scaled, bits)
        assert np.abs(apart).max() <= (1 if bits < 32 else 2**8)  # float32 in the copy, at most


def test_residuals_are_what_rounding_took() -> None:
    """Sent plus residual is the update: with error feedback nothing is lost."""
    spec = make_spec(bits=8, coordinates=5003, clip_norm=1.0)
    part, delta = spec.parts[0], random_deltas(1, 1.0, size=5003)[0]
    encoder = ValuesEncoder(spec, part, delta, 40000, Place(0, 1))
    residual = np.zeros(5003, np.float32)
    for index in range(chunk_count(part.values, spec.chunk_coordinates)):
        encoder.residual(index, residual)
    sent = mean_of(spec, [delta], [40000])
    assert float(np.linalg.norm(residual)) > 1e-3
    np.testing.assert_allclose(sent + residual, delta, atol=1e-5)


def test_encoding_holds_a_few_chunks_and_never_the_vector() -> None:
    size = 2**22
    delta = np.zeros(size, np.float32)
    delta[::1000] = 1e-3
    for bits in (8, 32):
        spec = make_spec(bits=bits, coordinates=size, chunk_coordinates=2**16)
        tracemalloc.start()
        factor, _ = fit_to_norm(delta, spec.clip_norm)
        encoder = ValuesEncoder(spec, spec.parts[0], delta, 40000, FIRST, factor=factor)
        for index in range(chunk_count(spec.parts[0].values, spec.chunk_coordinates)):
            encoder.chunk(index)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6 * 2**20  # the vector has 16 MiB


def test_the_norm_is_that_of_numpy() -> None:
    vector = np.random.default_rng(4).standard_normal(2**18 + 77).astype(np.float32)
    assert l2_norm(vector) == pytest.approx(float(np.linalg.norm(vector.astype(np.float64))), rel=1e-12)
