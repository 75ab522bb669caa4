"""Which ring a part travels in: narrow where a sum of it is known, wider where none is, the widest after a wrap."""

from __future__ import annotations

import pytest

from fedddpm_protocol.agreement.rings import WIDEST_BITS, ValuesRing, largest_references, next_ring
from fedddpm_protocol.agreement.spec import NOTHING_KNOWN, WEIGHT_UNITS, ScaleReference

KNOWN = ScaleReference(0.5, 3, 3 * WEIGHT_UNITS)


@pytest.mark.parametrize(
    ("bits", "first_bits", "reference", "widest", "expected"),
    [
        (8, 24, KNOWN, False, ValuesRing(8, KNOWN)),
        (8, 24, NOTHING_KNOWN, False, ValuesRing(24)),
        (32, 24, NOTHING_KNOWN, False, ValuesRing(32)),  # never narrower than asked for
        (8, 24, KNOWN, True, ValuesRing(WIDEST_BITS)),
        (8, 24, NOTHING_KNOWN, True, ValuesRing(WIDEST_BITS)),
    ],
)
def test_the_next_ring(
    bits: int, first_bits: int, reference: ScaleReference, widest: bool, expected: ValuesRing
) -> None:
    assert next_ring(bits, first_bits, reference, widest=widest) == expected


def test_the_largest_of_a_parts_shards_sizes_its_ring() -> None:
    large = ScaleReference(2.0, 4, 4 * WEIGHT_UNITS)
    references = {"encoder.0": KNOWN, "encoder.1": large, "encoder.2": NOTHING_KNOWN, "decoder": KNOWN}
    assert largest_references(references) == {"encoder": large, "decoder": KNOWN}
    assert largest_references({}) == {}
