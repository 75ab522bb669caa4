"""What a scale shows that is coarse beside the updates."""

from __future__ import annotations

import math

import numpy as np
from tests.protocol.support.specs import make_spec
from tests.protocol.support.sums import encoded, random_deltas, summed, with_reference

from fedddpm_protocol.agreement.spec import (
    WEIGHT_UNITS,
    ScaleReference,
)
from fedddpm_protocol.encoding.dither import UNITS, Dither
from fedddpm_protocol.encoding.encoder import (
    Place,
)
from fedddpm_protocol.encoding.rotation import Rotation
from fedddpm_protocol.encoding.scale import step_of
from fedddpm_protocol.primitives import ring


def test_a_scale_that_is_coarse_beside_the_updates_shows_nobody() -> None:
    """With public dither alone, a word tells of the member whose dither stands at the edge: everybody knows whose."""
    n, size = 3, 2**16
    generator = np.random.default_rng(5)
    deltas = [(generator.standard_normal(size) / 256).astype(np.float32) for _ in range(n)]
    norm = float(np.linalg.norm(deltas[0]))
    for ratio, coarse in ((60.0, True), (0.6, False)):  # the mean is said to be so much larger than an update
        reference = ScaleReference(ratio * norm, n, n * WEIGHT_UNITS)
        spec = with_reference(make_spec(bits=8, coordinates=size, clip_norm=1e4), reference)
        part = spec.parts[0]
        opened = ring.signed(summed(spec, deltas, [WEIGHT_UNITS] * n), 8).astype(np.float64)
        rotation = Rotation(spec, part, "f8")
        values = [rotation.forward(rotation.gather(delta, 0), 0).reshape(-1).copy() for delta in deltas]
        rms = float(np.sqrt(np.mean(values[0] ** 2))) / math.sqrt(part.values.block) / step_of(spec, part, n)
        assert (rms * math.sqrt(n) < 1.25) == coarse
        for member in range(n):
            dither = Dither(spec, part).member(0, size, member, n).astype(np.float64) / UNITS
            edge = np.abs(dither - np.round(dither)) < 0.05
            told = [float(np.corrcoef(opened[edge], value[edge])[0, 1]) for value in values]
            others = max(told[:member] + told[member + 1 :])
            assert told[member] < others + 0.1, (ratio, told)


def test_rounding_is_private_only_where_the_scale_is_coarse() -> None:
    delta = random_deltas(1, 1.0, size=4096)[0]
    fine = with_reference(make_spec(bits=8, coordinates=4096), ScaleReference(1.0, 5, 5 * WEIGHT_UNITS))
    coarse = with_reference(
        make_spec(bits=8, coordinates=4096, clip_norm=1e3), ScaleReference(100.0, 5, 5 * WEIGHT_UNITS)
    )
    np.testing.assert_array_equal(encoded(fine, delta, WEIGHT_UNITS), encoded(fine, delta, WEIGHT_UNITS))
    assert (encoded(coarse, delta, WEIGHT_UNITS) != encoded(coarse, delta, WEIGHT_UNITS)).any()
    halved = ScaleReference(5.94, 5, 5 * WEIGHT_UNITS)  # fine among five, coarse among the two who do not conspire
    between = with_reference(make_spec(bits=8, coordinates=4096, clip_norm=1e3), halved)
    for place, is_private in ((Place(0, 5), False), (Place(0, 5, 2), False), (Place(0, 5, 3), True)):
        twice = [encoded(between, delta, WEIGHT_UNITS, place) for _ in range(2)]
        assert (twice[0] != twice[1]).any() == is_private, place
    seed = b"\x03" * 32
    again = encoded(coarse, delta, WEIGHT_UNITS, seed=seed)
    np.testing.assert_array_equal(encoded(coarse, delta, WEIGHT_UNITS, seed=seed), again)
