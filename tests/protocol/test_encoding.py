"""Fixed-point encoding: exact sums, no wrap at the extremes, unbiased rounding, the same next model on both sides."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.protocol.specs import make_spec

from fedddpm_protocol import ring
from fedddpm_protocol.chunks import chunk_count
from fedddpm_protocol.encoding import (
    ValuesEncoder,
    check_opened,
    clip_to_norm,
    decode_mean,
    loss_units,
    next_model,
    step_of,
    sums_words,
    weight_units,
)
from fedddpm_protocol.errors import EncodingError, MalformedError, NonFiniteError, ResultError, RingOverflowError
from fedddpm_protocol.methods import Method
from fedddpm_protocol.prg import MaskStream
from fedddpm_protocol.spec import LOSS_LIMIT, LOSS_UNITS, WEIGHT_UNITS, RoundSpec, coordinates, model_hash

SIZE = 60
ODD_RINGS = (9, 12, 17, 33)


def encoded(spec: RoundSpec, delta: np.ndarray, weight: int, seed: bytes = b"") -> ring.Words:
    part = spec.parts[0]
    encoder = ValuesEncoder(spec, part, delta, weight, seed or None)
    return np.concatenate([encoder.chunk(i) for i in range(chunk_count(part.values, spec.chunk_coordinates))])


def summed(spec: RoundSpec, deltas: list[np.ndarray], weights: list[int]) -> tuple[ring.Words, list[int]]:
    bits = spec.parts[0].values.bits
    total = ring.zeros(len(deltas[0]), bits)
    for delta, weight in zip(deltas, weights, strict=True):
        ring.add_in_place(total, encoded(spec, delta, weight), bits)
    return total, [sum(weights), 10, 10]


def random_deltas(n: int, norm: float, seed: int = 1) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    deltas = [generator.standard_t(3, SIZE).astype(np.float32) for _ in range(n)]
    return [clip_to_norm(delta * np.float32(100), norm)[0] for delta in deltas]


@pytest.mark.parametrize("bits", [12, 16, 24, 32, 48])
@pytest.mark.parametrize("n", [2, 5, 100])
def test_the_mean_is_off_by_less_than_one_step_each(bits: int, n: int) -> None:
    spec = make_spec(bits=bits, coordinates=SIZE, largest_cohort=max(n, 2))
    deltas = random_deltas(n, spec.clip_norm)
    weights = [1 + (index * 977) % WEIGHT_UNITS for index in range(n)]
    words, sums = summed(spec, deltas, weights)
    wide = np.array(deltas, np.float64)
    exact = (wide * np.array(weights)[:, None]).sum(axis=0) / sum(weights)
    bound = n * step_of(spec, spec.parts[0]) * WEIGHT_UNITS / sum(weights)
    mean = decode_mean(spec, spec.parts[0], words, sums)
    assert np.abs(mean - exact).max() <= bound * (1 + 1e-9) + 1e-12
    np.testing.assert_array_equal(check_opened(spec, spec.parts[0], words, sums, n), mean)


@pytest.mark.parametrize("bits", [8, *ODD_RINGS, 16, 32, 48])
@pytest.mark.parametrize("sign", [1, -1])
def test_no_sum_of_clipped_updates_wraps(bits: int, sign: int) -> None:
    """The largest cohort, everybody with full weight and the whole norm in one and the same coordinate."""
    n = 128 if bits > 9 else 16
    spec = make_spec(bits=bits, coordinates=SIZE, largest_cohort=n)
    part, delta = spec.parts[0], np.zeros(SIZE, np.float32)
    delta[7] = sign * spec.clip_norm
    words, sums = summed(spec, [delta] * n, [WEIGHT_UNITS] * n)
    opened = ring.signed(words, bits)
    half: int = 2 ** (bits - 1)
    assert -half <= int(opened[7]) < half
    assert int(opened[7]) * sign > 0  # a wrapped sum has the other sign
    step = step_of(spec, part)
    assert decode_mean(spec, part, words, sums)[7] == pytest.approx(sign * spec.clip_norm, abs=step + 1e-12)
    # What rounds up every time still fits: one unit more for everybody.
    assert abs(int(opened[7])) + n < half


def test_one_institution_over_the_norm_raises() -> None:
    spec = make_spec(coordinates=SIZE)
    delta = np.zeros(SIZE, np.float32)
    delta[0] = np.nextafter(np.float32(spec.clip_norm), np.float32(9))
    with pytest.raises(RingOverflowError):
        ValuesEncoder(spec, spec.parts[0], delta, WEIGHT_UNITS)
    with pytest.raises(RingOverflowError):
        ValuesEncoder(spec, spec.parts[0], delta * np.float32(1e20), WEIGHT_UNITS)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_raise(value: float) -> None:
    spec = make_spec(coordinates=SIZE)
    delta = np.zeros(SIZE, np.float32)
    delta[3] = value
    with pytest.raises(NonFiniteError):
        ValuesEncoder(spec, spec.parts[0], delta, WEIGHT_UNITS)
    with pytest.raises(NonFiniteError):
        clip_to_norm(delta, 1.0)
    with pytest.raises(NonFiniteError):
        loss_units(value)
    with pytest.raises(NonFiniteError):
        sums_words(spec.parts[0], 5, value, 0.1)


@pytest.mark.parametrize(
    "delta", [np.zeros(SIZE), np.zeros(SIZE + 1, np.float32), np.zeros(SIZE - 1, np.float32), np.zeros((1, SIZE), "f4")]
)
def test_a_vector_of_another_size_or_type_raises(delta: Any) -> None:
    spec = make_spec(coordinates=SIZE)
    with pytest.raises(EncodingError):
        ValuesEncoder(spec, spec.parts[0], delta, WEIGHT_UNITS)


@pytest.mark.parametrize("weight", [0, -1, WEIGHT_UNITS + 1])
def test_a_weight_out_of_range_raises(weight: int) -> None:
    spec = make_spec(coordinates=SIZE)
    with pytest.raises(RingOverflowError):
        ValuesEncoder(spec, spec.parts[0], np.zeros(SIZE, np.float32), weight)
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
    assert 128 * loss_units(1e9) < 2**32  # the sum of the largest cohort fits the smallest weights ring
    assert 128 * WEIGHT_UNITS < 2**32


def test_rounding_is_unbiased() -> None:
    """The mean over many roundings of one value lies within five standard errors of it."""
    spec = make_spec(bits=12, coordinates=SIZE)
    part, rounds = spec.parts[0], 4000
    delta = np.linspace(0, 3.7, SIZE).astype(np.float32) * np.float32(step_of(spec, part))
    total = np.zeros(SIZE)
    for index in range(rounds):
        total += ring.signed(encoded(spec, delta, WEIGHT_UNITS, index.to_bytes(32, "big")), 12)
    wanted = delta.astype(np.float64) / step_of(spec, part)
    spread = np.sqrt((wanted % 1) * (1 - wanted % 1) / rounds)
    assert (np.abs(total / rounds - wanted) <= 5 * spread + 1e-6).all()


def test_a_chunk_is_the_same_at_every_call_and_fresh_for_every_encoder() -> None:
    spec = make_spec(bits=12, coordinates=SIZE)
    delta = random_deltas(1, spec.clip_norm)[0]
    encoder = ValuesEncoder(spec, spec.parts[0], delta, 12345)
    chunks = [encoder.chunk(index) for index in (3, 0, 3, 0)]
    np.testing.assert_array_equal(chunks[0], chunks[2])
    np.testing.assert_array_equal(chunks[1], chunks[3])
    assert any((encoded(spec, delta, 12345) != encoded(spec, delta, 12345)).any() for _ in range(5))


def test_clipping() -> None:
    delta = random_deltas(1, 1e9)[0]
    clipped, norm = clip_to_norm(delta, 2.0)
    assert norm > 2.0
    assert 1.999 < float(np.linalg.norm(clipped.astype(np.float64))) <= 2.0
    assert clipped.dtype == np.float32
    assert clip_to_norm(clipped, 2.0)[0] is clipped


@pytest.mark.parametrize("bits", [8, *ODD_RINGS, 16, 24, 31, 32, 48, 63, 64])
def test_rings_pack_unpack_and_mask(bits: int) -> None:
    generator = np.random.default_rng(bits)
    for count in (1, 7, 8, 24, 33):
        raw = np.frombuffer(generator.bytes(8 * count), "<u8")
        words = (raw & np.uint64(2**bits - 1)).astype(ring.word_dtype(bits))
        packed = ring.pack(words, bits)
        assert len(packed) == ring.packed_bytes(count, bits) == -(-count * bits // 8)
        np.testing.assert_array_equal(ring.unpack(packed, bits, count), words)
        stream = int.from_bytes(packed, "little")  # the definition: an LSB-first stream of b-bit words
        assert [stream >> bits * k & (2**bits - 1) for k in range(count)] == [int(word) for word in words]
        mask = MaskStream(b"\x05" * 32, "part", bits).words(0, count)
        masked = words.copy()
        ring.add_in_place(masked, mask, bits)
        assert [int(word) for word in masked] == [
            (int(word) + int(added)) % 2**bits for word, added in zip(words, mask, strict=True)
        ]
        ring.subtract_in_place(masked, mask, bits)
        np.testing.assert_array_equal(masked, words)
        half: int = 2 ** (bits - 1)
        signs = [int(word) - 2**bits if int(word) >= half else int(word) for word in words]
        assert [int(value) for value in ring.signed(words, bits)] == signs


@pytest.mark.parametrize("bits", [8, *ODD_RINGS, 32, 64])
def test_packed_vectors_have_one_length_and_zero_padding(bits: int) -> None:
    packed = ring.pack(ring.zeros(9, bits), bits)
    for wrong in (packed + b"\0", packed[:-1], b""):
        with pytest.raises(MalformedError):
            ring.unpack(wrong, bits, 9)
    if 9 * bits % 8:
        with pytest.raises(MalformedError, match="padding"):
            ring.unpack(packed[:-1] + b"\x80", bits, 9)


@pytest.mark.parametrize("bits", [7, 65, 0])
def test_rings_out_of_range(bits: int) -> None:
    with pytest.raises(ValueError):
        ring.word_dtype(bits)


# --- the next model --------------------------------------------------------------------------------------------------


def opened_round(scheme: Method, bits: int) -> tuple[RoundSpec, np.ndarray, dict[str, tuple[Any, Any, int]]]:
    spec = make_spec(scheme=scheme, bits=bits)
    generator = np.random.default_rng(3)
    base = generator.standard_normal(coordinates(spec.base_manifest)).astype(np.float32)
    opened = {}
    for part in spec.parts:
        words = ring.zeros(part.values.coordinates, bits)
        for _ in range(4):
            delta = clip_to_norm(generator.standard_normal(part.values.coordinates).astype(np.float32), 2.0)[0]
            encoder = ValuesEncoder(spec, part, delta, 40000)
            chunks = range(chunk_count(part.values, spec.chunk_coordinates))
            ring.add_in_place(words, np.concatenate([encoder.chunk(index) for index in chunks]), bits)
        opened[part.name] = (words, (160000, 10, 10), 4)
    return spec, base, opened


@pytest.mark.parametrize("scheme", list(Method))
@pytest.mark.parametrize("bits", [12, 16, 32])
def test_both_sides_derive_the_same_model(scheme: Method, bits: int) -> None:
    """The institution gets packed words and a list of sums; the aggregator holds arrays. Bit for bit the same."""
    spec, base, opened = opened_round(scheme, bits)
    ours = next_model(spec, base, opened)
    sent = {part: ring.pack(words, bits) for part, (words, _, _) in opened.items()}
    theirs = next_model(
        spec,
        base.copy(),
        {part: (ring.unpack(raw, bits, len(opened[part][0])), list(opened[part][1]), 4) for part, raw in sent.items()},
    )
    assert ours.dtype == np.float32
    assert ours.tobytes() == theirs.tobytes()
    assert model_hash(spec.base_manifest, ours) == model_hash(spec.base_manifest, theirs)
    means = [decode_mean(spec, part, *opened[part.name][:2]) for part in spec.parts]
    np.testing.assert_array_equal(ours, (base.astype(np.float64) + np.concatenate(means)).astype(np.float32))


def test_a_part_that_did_not_open_keeps_its_values() -> None:
    spec, base, opened = opened_round(Method.USPLIT, 32)
    following = next_model(spec, base, {"bottleneck": opened["bottleneck"]})
    start = spec.parts[0].values.coordinates
    end = start + spec.parts[1].values.coordinates
    np.testing.assert_array_equal(following[:start], base[:start])
    np.testing.assert_array_equal(following[end:], base[end:])
    assert (following[start:end] != base[start:end]).any()


@pytest.mark.parametrize("size", [1, -1, 0])
def test_an_opened_vector_or_base_of_another_size_is_refused(size: int) -> None:
    """One opened word must not be spread over the whole model."""
    spec, base, opened = opened_round(Method.FULL, 32)
    words, sums, n = opened["full"]
    wrong = np.resize(words, len(words) + size) if size else words[:1]
    with pytest.raises(ResultError):
        next_model(spec, base, {"full": (wrong, sums, n)})
    with pytest.raises(ResultError):
        next_model(spec, base, {"full": (words.astype(np.uint64), sums, n)})
    with pytest.raises(ResultError):
        next_model(spec, np.resize(base, len(base) + (size or 5)), opened)
    with pytest.raises(ResultError):
        next_model(spec, base.astype(np.float64), opened)


def test_an_update_that_was_not_clipped_holds_the_round() -> None:
    """One institution sends a thousand times its update: the opened mean leaves the agreed norm."""
    spec = make_spec(coordinates=SIZE)
    part = spec.parts[0]
    words, sums = summed(spec, random_deltas(3, spec.clip_norm), [WEIGHT_UNITS] * 3)
    check_opened(spec, part, words, sums, 3)
    poisoned = words.copy()
    poisoned[0] = 2**31 - 1
    with pytest.raises(ResultError, match="did not clip"):
        check_opened(spec, part, poisoned, sums, 3)


@pytest.mark.parametrize(
    "sums", [(2, 0, 0), (3 * WEIGHT_UNITS + 1, 0, 0), (0, 0, 0), (9, 3 * 16 * 2**20, 0), (9, 0, 2**32 - 1), (9, 0), ()]
)
def test_sums_that_no_institutions_can_have_are_refused(sums: tuple[int, ...]) -> None:
    spec = make_spec(coordinates=SIZE)
    with pytest.raises(ResultError):
        check_opened(spec, spec.parts[0], ring.zeros(SIZE, 32), sums, 3)
