"""One member's own words, opened to the auditor: an honest one is within its bound in every ring, others are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.protocol.support.specs import make_spec
from tests.protocol.support.sums import encoded, opened_part, random_deltas

from fedddpm_protocol.agreement.spec import LOSS_LIMIT, LOSS_UNITS, RINGS, WEIGHT_UNITS, RoundSpec, ScaleReference
from fedddpm_protocol.encoding.decoder import check_single, measure
from fedddpm_protocol.encoding.encoder import Place
from fedddpm_protocol.errors import ResultError
from fedddpm_protocol.primitives import ring

SIZE, CLIP = 5000, 2.0


def spec_of(bits: int, weighting: str = "equal", norm: float = 0.0) -> RoundSpec:
    spec = make_spec(bits=bits, coordinates=SIZE, weighting=weighting, clip_norm=CLIP)
    known = ScaleReference(norm=norm, weight=5 * WEIGHT_UNITS, survivors=5) if norm else spec.parts[0].reference
    return replace(spec, parts=(replace(spec.parts[0], reference=known),))


def judged(spec: RoundSpec, words: ring.Words, sums: tuple[int, ...] = (WEIGHT_UNITS, 0, 0)) -> tuple[float, float]:
    opened = opened_part(spec, words, sums, 1, 5)
    return check_single(spec, spec.parts[0], measure(spec, spec.parts[0], opened), sums, 5)


@pytest.mark.parametrize("bits", RINGS)
@pytest.mark.parametrize("known", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("size", [0.0, 0.01, 1.0])
def test_an_honest_update_is_within_its_bound(bits: int, known: float, size: float) -> None:
    spec = spec_of(bits, norm=known)
    delta = random_deltas(1, CLIP, size=SIZE)[0] * np.float32(size)
    norm, limit = judged(spec, encoded(spec, delta, WEIGHT_UNITS, Place(2, 5, 1)))
    assert norm <= limit
    assert limit >= CLIP


@pytest.mark.parametrize("weight", [1, 40000, WEIGHT_UNITS])
def test_a_weight_scales_the_bound(weight: int) -> None:
    spec = spec_of(32, "hidden")
    delta = random_deltas(1, CLIP, size=SIZE)[0]
    norm, limit = judged(spec, encoded(spec, delta, weight), (weight, 5, 5))
    assert norm <= limit
    assert norm == pytest.approx(CLIP, rel=1e-3 if weight > 1 else 0.2)
    more = encoded(spec, delta, WEIGHT_UNITS)  # words of full weight under a weight that is lower
    if weight < WEIGHT_UNITS:
        norm, limit = judged(spec, more, (weight, 5, 5))
        assert norm > limit


@pytest.mark.parametrize("factor", [2, 3, 1000])
def test_a_magnified_one_is_not(factor: int) -> None:
    spec = spec_of(32)
    words = encoded(spec, random_deltas(1, CLIP, size=SIZE)[0], WEIGHT_UNITS)
    norm, limit = judged(spec, words * words.dtype.type(factor))
    assert norm > limit
    assert norm == pytest.approx(factor * CLIP, rel=0.01) or factor == 1000  # which wraps around


def test_weights_and_losses_that_nobody_agreed_on() -> None:
    words = ring.zeros(SIZE, 32)
    most = int(LOSS_LIMIT * LOSS_UNITS)
    assert judged(spec_of(32), words)[0] == 0.0
    for weighting, sums in (
        ("equal", (WEIGHT_UNITS - 1, 0, 0)),
        ("equal", (WEIGHT_UNITS + 1, 0, 0)),
        ("hidden", (0, 0, 0)),
        ("hidden", (WEIGHT_UNITS + 1, 0, 0)),
        ("hidden", (2**31, 0, 0)),
        ("equal", (WEIGHT_UNITS, most, 0)),
        ("equal", (WEIGHT_UNITS, 0, 2**32 - 1)),
        ("equal", (WEIGHT_UNITS, 0)),
    ):
        with pytest.raises(ResultError):
            judged(spec_of(32, weighting), words, sums)
    assert judged(spec_of(32, "hidden"), words, (1, most - 1, most - 1))[0] == 0.0
