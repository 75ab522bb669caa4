"""From opened sums to the next model: the same bits everywhere, and sums that cannot be are refused."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.protocol.support.specs import changed, make_part_result, make_result, make_spec
from tests.protocol.support.sums import encoded, mean_of, names, opened_part, summed

from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import coordinates, model_hash
from fedddpm_protocol.agreement.result import PartResult
from fedddpm_protocol.agreement.spec import NOTHING_KNOWN, RINGS, ROWS, WEIGHT_UNITS, RoundSpec, ScaleReference
from fedddpm_protocol.encoding.decoder import OpenedPart, check_move, check_opened, measure, next_model
from fedddpm_protocol.encoding.dither import UNITS, shift, total_table
from fedddpm_protocol.encoding.encoder import Place, fit_to_norm
from fedddpm_protocol.encoding.scale import Energy, predicted_norm, step_of
from fedddpm_protocol.errors import ResultError, WrappedSumError
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.primitives.canonical import tagged_hash
from fedddpm_protocol.primitives.keystream import MaskStream

SIZE = 5000


def updates(n: int, norm: float, seed: int = 1, size: int = SIZE) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    raw = [generator.standard_normal(size).astype(np.float32) for _ in range(n)]
    return [(delta * np.float32(norm / np.linalg.norm(delta.astype(np.float64)) * (1 - 1e-6))) for delta in raw]


def verdict(spec: RoundSpec, opened: OpenedPart) -> float:
    part = spec.parts[0]
    energy = measure(spec, part, opened)
    return check_opened(spec, part, energy, opened.sums, len(opened.cohort), len(opened.survivors))


def with_reference(spec: RoundSpec, reference: ScaleReference) -> RoundSpec:
    return replace(spec, parts=(replace(spec.parts[0], reference=reference),))


# --- exactness -------------------------------------------------------------------------------------------------------


def opened_round(scheme: Method, bits: int) -> tuple[RoundSpec, np.ndarray, dict[str, OpenedPart]]:
    spec = make_spec(scheme=scheme, bits=bits)
    base = np.random.default_rng(3).standard_normal(coordinates(spec.base_manifest)).astype(np.float32)
    opened = {}
    for number, part in enumerate(spec.parts):
        full = {"method": Method.FULL.value, "turn": "", "parts": (replace_name(part),)}
        alone = changed(spec, **full) if len(spec.parts) > 1 else spec
        words = summed(alone, updates(4, 1.0, size=part.parameters), [40000] * 4)
        opened[part.name] = opened_part(spec, words, (160000, 10, 10), 4, part=number)
    return spec, base, opened


def replace_name(part):  # type: ignore[no-untyped-def]
    values, weights = part.segments
    return replace(part, name="full", segments=(replace(values, name="full"), replace(weights, name="full.weights")))


@pytest.mark.parametrize("scheme", list(Method))
@pytest.mark.parametrize("bits", [4, 8, 12, 16, 24, 32])
def test_both_sides_derive_the_same_model(scheme: Method, bits: int) -> None:
    """The institution gets packed words and a list of sums; the aggregator holds arrays. Bit for bit the same."""
    spec, base, opened = opened_round(scheme, bits)
    ours = next_model(spec, base, opened)
    sent = {
        name: replace(
            one,
            chunk=lambda index, one=one: ring.unpack(ring.pack(one.chunk(index), bits), bits, len(one.chunk(index))),
            sums=list(one.sums),
        )
        for name, one in opened.items()
    }
    theirs = next_model(spec, base.copy(), sent)
    assert ours.dtype == np.float32
    assert model_hash(spec.base_manifest, ours) == model_hash(spec.base_manifest, theirs)
    assert (ours != base).any()


def slow_mean(
    spec: RoundSpec, words: ring.Words, positions: list[int], cohort: int, weight: int, rows: int | None = None
) -> list[float]:
    """The definition of the decoding in Python's integers: no NumPy, no float before the one factor."""
    part = spec.parts[0]
    block, blocks = part.values.block, part.values.coordinates // part.values.block
    rows = min(block, ROWS if rows is None else rows)
    lanes = block // rows
    signs = MaskStream(tagged_hash("rotation", spec.encoding_seed, b"full"), "signs", 8).words(0, block * blocks // 8)
    common = MaskStream(tagged_hash("dither", spec.encoding_seed, b"full"), "words", 16).words(0, block * blocks)
    factor = step_of(spec, part, cohort) * WEIGHT_UNITS / weight / (UNITS * math.sqrt(block))
    opened = [int(value) * UNITS for value in ring.signed(words, part.values.bits)]
    for index in range(block * blocks):
        for position in positions:
            word = (int(common[index]) >> 4) + shift(position, cohort)
            opened[index] -= word % UNITS - UNITS // 2
    mean = [0.0] * (block * blocks)
    width = lanes * blocks  # columns of the one chunk
    for index in range(block * blocks):
        row, column = divmod(index, width)
        which, lane = divmod(column, lanes)
        total = 0
        for other in range(block):
            other_row, other_lane = divmod(other, lanes)
            word = opened[other_row * width + which * lanes + other_lane]
            total += -word if ((row & other_row).bit_count() + (lane & other_lane).bit_count()) % 2 else word
        sign = -1 if int(signs[index // 8]) >> index % 8 & 1 else 1
        mean[index] = sign * total * factor
    return mean[: part.parameters]


@pytest.mark.parametrize("bits", [8, 16, 24])
@pytest.mark.parametrize("rows", [None, 8])
def test_decoding_is_its_definition_in_whole_numbers(
    bits: int, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rows is not None:  # several lanes in a block, as where blocks are larger than 4096
        monkeypatch.setattr("fedddpm_protocol.agreement.spec.ROWS", rows)
    spec = make_spec(bits=bits, coordinates=200, clip_norm=1.0)
    deltas = updates(3, 1.0, size=200)
    words = summed(spec, deltas, [30000] * 3, cohort=5)
    base = np.random.default_rng(5).standard_normal(200).astype(np.float32)
    model = next_model(spec, base, {"full": opened_part(spec, words, (90000, 0, 0), 3, cohort=5)})
    expected = [
        np.float32(float(b) + m) for b, m in zip(base, slow_mean(spec, words, [0, 1, 2], 5, 90000, rows), strict=True)
    ]
    assert model.tobytes() == np.array(expected, np.float32).tobytes()


def test_the_model_is_the_same_on_one_thread_on_many_and_on_plain_kernels() -> None:
    """Threads and the processor's kernels decide in which order BLAS adds; whole numbers do not mind."""
    outputs = set()
    for settings in (
        {"OPENBLAS_NUM_THREADS": "1"},
        {"OPENBLAS_NUM_THREADS": "4"},
        {"OPENBLAS_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": "AVX2 AVX512_SKX"},
    ):
        command = [sys.executable, "-W", "ignore", str(Path(__file__).parents[1] / "support" / "derive_models.py")]
        done = subprocess.run(command, env={**os.environ, **settings}, check=True, capture_output=True, text=True)
        outputs.add(done.stdout)
    (output,) = outputs
    assert output.split() == _RECORDED


_RECORDED = [  # by a machine of the x86-64 kind with one thread
    "c97e3ababd9ef631cf94d8f6a506c03f492de5af1641f6e59741f0a762d94303",
    "55e529ec5fb2208dbc553f34cdef9a5eb2b97dbbfb3f6106b6a6d64550bdeea9",
    "46dc6681bd6be0b2dbf59a52a7a754c672d9f950a209a9c9672b67263501ba26",
]


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_a_model_without_its_sums_is_within_reach_of_clipped_updates(bits: int) -> None:
    spec = make_spec(bits=bits)
    size = spec.parts[0].parameters
    base = np.random.default_rng(3).standard_normal(size).astype(np.float32)
    words = summed(spec, updates(1, spec.clip_norm, size=size) * 4, [40000] * 4)  # all agree: as far as it goes
    opened = {f"full.{shard}": opened_part(spec, words, (160000, 10, 10), 4) for shard in range(2)}
    shards = [
        make_part_result(part=name, cohort=one.cohort, survivors=one.survivors, sums=one.sums)
        for name, one in opened.items()
    ]
    result = make_result(spec, parts=tuple(shards))
    model = next_model(spec, base, opened)
    check_move(spec, result, base, model)
    for wrong in (base + (2 if bits > 8 else 100) * (model - base), np.full_like(base, np.nan)):
        with pytest.raises(ResultError, match="moved part 'full'"):
            check_move(spec, result, base, wrong)


def test_a_part_that_did_not_open_is_where_it_was() -> None:
    spec, base, opened = opened_round(Method.USPLIT, 32)
    encoder = opened["encoder"]
    part = make_part_result(part="encoder", cohort=encoder.cohort, survivors=encoder.survivors, sums=encoder.sums)
    result = make_result(spec, parts=(part, PartResult.not_opened("bottleneck"), PartResult.not_opened("decoder")))
    check_move(spec, result, base, next_model(spec, base, {"encoder": encoder}))
    with pytest.raises(ResultError, match="moved part 'decoder'"):
        check_move(spec, result, base, next_model(spec, base, {name: opened[name] for name in ("encoder", "decoder")}))


def test_a_part_that_did_not_open_keeps_its_values() -> None:
    spec, base, opened = opened_round(Method.USPLIT, 32)
    following = next_model(spec, base, {"bottleneck": opened["bottleneck"]})
    start = spec.parts[0].parameters
    end = start + spec.parts[1].parameters
    np.testing.assert_array_equal(following[:start], base[:start])
    np.testing.assert_array_equal(following[end:], base[end:])
    assert (following[start:end] != base[start:end]).any()


# --- dither ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("positions", "cohort"), [((0,), 1), ((0, 1, 2), 3), ((0, 2, 6), 7), (range(100), 100)])
def test_the_sum_of_the_dithers_is_a_function_of_one_stream(positions: tuple[int, ...], cohort: int) -> None:
    table = total_table(positions, cohort)
    for word in (0, 1, 7, UNITS // 2 - 1, UNITS // 2, UNITS - 1):
        assert int(table[word]) == sum((word + shift(p, cohort)) % UNITS - UNITS // 2 for p in positions)


@pytest.mark.parametrize("cohort", [1, 2, 3, 4, 6, 12, 100, 127, 128])
def test_a_cohort_is_spread_evenly_and_neighbours_stand_far_apart(cohort: int) -> None:
    shifts = [shift(position, cohort) for position in range(cohort)]
    assert sorted(shifts) == [place * UNITS // cohort for place in range(cohort)]
    for left in range(1, cohort):  # the others, neighbours in the order of ids, dropped
        rms = np.sqrt(np.mean(total_table(range(left), cohort) ** 2)) / UNITS
        assert rms < 1.0  # steps; half a cohort of neighbours would come to 0.14 a member


def test_errors_of_alike_updates_cancel() -> None:
    """With the dithers spread over one step the mean of n like updates errs as one of them would in a finer ring."""
    n, delta = 16, updates(1, 1.0)[0]
    reference = ScaleReference(1.0, n, n * WEIGHT_UNITS)
    spec = with_reference(make_spec(bits=8, coordinates=SIZE, largest_cohort=n), reference)
    step = step_of(spec, spec.parts[0], n)
    error = mean_of(spec, [delta] * n, [WEIGHT_UNITS] * n).astype(np.float64) - delta
    independent = step / n * math.sqrt(n / 12)
    assert math.sqrt(float(np.mean(error**2))) < 0.35 * independent


# --- scales ----------------------------------------------------------------------------------------------------------


def test_scales_follow_the_last_sum_and_the_size_of_the_cohort() -> None:
    spec = make_spec(bits=8, coordinates=SIZE, clip_norm=1.0)
    known = with_reference(spec, ScaleReference(0.01, 5, 5 * WEIGHT_UNITS))
    part = known.parts[0]
    assert predicted_norm(spec, spec.parts[0], 5) == 5.0  # nothing known: everybody may fill the clip norm
    assert predicted_norm(known, part, 5) == pytest.approx(0.05)
    assert predicted_norm(known, part, 20) == pytest.approx(0.2)  # alike: by their number
    assert predicted_norm(known, part, 2) == pytest.approx(0.01 * math.sqrt(10))  # not alike: the mean hid some
    large = with_reference(spec, ScaleReference(1e6, 5, 5 * WEIGHT_UNITS))
    assert predicted_norm(large, large.parts[0], 5) == 5.0  # clipped updates cannot give more
    light = with_reference(spec, ScaleReference(0.01, 5, 5))
    assert predicted_norm(light, light.parts[0], 5) == pytest.approx(0.05 / WEIGHT_UNITS)


@pytest.mark.parametrize(("before", "now"), [(3, 20), (20, 3), (5, 100), (5, 5)])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("alike", [True, False])
def test_a_cohort_that_changes_does_not_wrap(before: int, now: int, bits: int, alike: bool) -> None:
    deltas = updates(1, 1.0) * 100 if alike else updates(max(before, now), 1.0)
    first = make_spec(bits=16, coordinates=SIZE, largest_cohort=128, clip_norm=100.0)
    opened = opened_part(first, summed(first, deltas[:before], [60000] * before), (60000 * before, 0, 0), before)
    reference = ScaleReference.after(verdict(first, opened), before, 60000 * before)
    second = with_reference(make_spec(bits=bits, coordinates=SIZE, largest_cohort=128), reference)
    words = summed(second, deltas[:now], [60000] * now)
    verdict(second, opened_part(second, words, (60000 * now, 0, 0), now))
    exact = np.mean(np.array(deltas[:now], np.float64), axis=0)
    error = np.sum((mean_of(second, deltas[:now], [60000] * now) - exact) ** 2)
    noise = SIZE * now / 12 * (step_of(second, second.parts[0], now) * WEIGHT_UNITS / (60000 * now)) ** 2
    assert error < 1.3 * noise  # that of rounding alone; one wrapped coordinate would be 2^bits steps off


# --- sums that are not used ------------------------------------------------------------------------------------------


def test_the_norm_is_that_of_the_mean() -> None:
    for bits in RINGS[2:]:
        spec = make_spec(bits=bits, coordinates=SIZE, clip_norm=1.0)
        deltas = updates(3, 1.0)
        norm = verdict(spec, opened_part(spec, summed(spec, deltas, [9000] * 3), (27000, 0, 0), 3))
        exact = float(np.linalg.norm(np.mean(np.array(deltas, np.float64), axis=0)))
        assert exact * 0.9 < norm < exact * (1.6 if bits <= 8 else 1.1)


def test_a_sum_too_large_for_its_ring_is_not_used() -> None:
    for factor, bits in ((2.5, 8), (10.0, 8), (1e4, 8), (2.5, 16), (1e5, 16)):
        reference = ScaleReference(1.0 / factor, 3, 3 * WEIGHT_UNITS)
        spec = with_reference(make_spec(bits=bits, coordinates=SIZE), reference)
        words = summed(spec, updates(1, 1.0) * 3, [WEIGHT_UNITS] * 3)
        with pytest.raises(WrappedSumError, match="ring of"):
            verdict(spec, opened_part(spec, words, (3 * WEIGHT_UNITS, 0, 0), 3))


def test_one_hot_coordinate_is_noticed_and_the_next_scale_has_room_for_it() -> None:
    size = 200_000
    delta = updates(1, 1.0, size=size)[0]
    delta[77] = 1.0  # half of the energy in one coordinate, hence in one block of 49
    first = make_spec(bits=16, coordinates=size, clip_norm=10.0)
    opened = opened_part(first, summed(first, [delta] * 3, [WEIGHT_UNITS] * 3), (3 * WEIGHT_UNITS, 0, 0), 3)
    norm = verdict(first, opened)
    assert norm > 2 * float(np.linalg.norm(delta.astype(np.float64)))
    flat = with_reference(make_spec(bits=8, coordinates=size), ScaleReference(1.4, 3, 3 * WEIGHT_UNITS))
    with pytest.raises(WrappedSumError):
        verdict(flat, opened_part(flat, summed(flat, [delta] * 3, [WEIGHT_UNITS] * 3), (3 * WEIGHT_UNITS, 0, 0), 3))
    roomy = with_reference(make_spec(bits=8, coordinates=size), ScaleReference(norm, 3, 3 * WEIGHT_UNITS))
    error = np.sum((mean_of(roomy, [delta] * 3, [WEIGHT_UNITS] * 3).astype(np.float64) - delta) ** 2)
    assert error / np.sum(delta.astype(np.float64) ** 2) < 0.05


def test_an_update_that_was_not_clipped_holds_the_round() -> None:
    """One institution sends a thousand times its update: the opened mean leaves the agreed norm."""
    spec = make_spec(coordinates=60)
    deltas = updates(3, spec.clip_norm, size=60)
    words = summed(spec, deltas, [WEIGHT_UNITS] * 3)
    sums = (3 * WEIGHT_UNITS, 0, 0)
    verdict(spec, opened_part(spec, words, sums, 3))
    poisoned = words.copy()
    poisoned[0] = 2**31 - 1
    with pytest.raises(ResultError, match="did not clip"):
        verdict(spec, opened_part(spec, poisoned, sums, 3))


def test_an_update_that_was_not_clipped_is_noticed_in_a_narrow_ring_too() -> None:
    spec = make_spec(bits=16, coordinates=SIZE)
    deltas = updates(3, spec.clip_norm)
    words = summed(spec, deltas, [WEIGHT_UNITS] * 3)
    loose = changed(spec, clip_norm=1e6)
    ours = encoded(spec, deltas[0], WEIGHT_UNITS, Place(0, 3))
    ring.subtract_in_place(words, ours, 16)
    magnified = (ring.signed(ours, 16) * 1000).astype(np.uint16)
    ring.add_in_place(words, magnified, 16)
    with pytest.raises(WrappedSumError):
        verdict(spec, opened_part(spec, words, (3 * WEIGHT_UNITS, 0, 0), 3))
    assert fit_to_norm(deltas[0], loose.clip_norm)[0] == 1.0


@pytest.mark.parametrize("size", [1, -1, 0])
def test_an_opened_vector_or_base_of_another_size_is_refused(size: int) -> None:
    """One opened word must not be spread over the whole model."""
    spec, base, opened = opened_round(Method.FULL, 32)
    one = opened["full"]

    def wrong(index: int) -> ring.Words:
        words = one.chunk(index)
        return np.resize(words, len(words) + size) if size else words[:1]

    with pytest.raises(ResultError):
        next_model(spec, base, {"full": replace(one, chunk=wrong)})
    with pytest.raises(ResultError):
        next_model(spec, base, {"full": replace(one, chunk=lambda index: one.chunk(index).astype(np.uint64))})
    with pytest.raises(ResultError):
        next_model(spec, np.resize(base, len(base) + (size or 5)), opened)
    with pytest.raises(ResultError):
        next_model(spec, base.astype(np.float64), opened)


def test_an_opened_vector_with_a_chunk_missing_is_refused() -> None:
    spec = make_spec(coordinates=60)
    with pytest.raises(ResultError, match="expected"):
        check_opened(spec, spec.parts[0], Energy(spec.parts[0]), (3 * WEIGHT_UNITS, 0, 0), 3, 3)


@pytest.mark.parametrize(
    "sums", [(2, 0, 0), (3 * WEIGHT_UNITS + 1, 0, 0), (0, 0, 0), (9, 3 * 16 * 2**20, 0), (9, 0, 2**32 - 1), (9, 0), ()]
)
def test_sums_that_no_institutions_can_have_are_refused(sums: tuple[int, ...]) -> None:
    spec = make_spec(coordinates=60)
    with pytest.raises(ResultError):
        verdict(spec, opened_part(spec, ring.zeros(60, 32), sums, 3))


@pytest.mark.parametrize(
    "reference", [(math.nan, 3, 9), (math.inf, 3, 9), (-1.0, 3, 9), (1.0, 1, 9), (1.0, 3, 2), (0.0, 3, 9)]
)
def test_references_that_no_sum_can_leave_are_refused(reference: tuple[float, int, int]) -> None:
    with pytest.raises(ValueError):
        ScaleReference(*reference)
    assert ScaleReference.after(0.0, 3, 9) is NOTHING_KNOWN
    assert names(2) == ("site-000", "site-001")
