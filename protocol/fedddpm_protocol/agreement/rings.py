"""In which ring the values of a part travel in the next attempt, and what their scale follows from.

A narrow ring is sized by the part's last opened sum; where the part has shards, by that of the largest norm. Where
nothing is known of it the ring is wider. After a sum that left its ring the part travels once in the widest, which
holds any sum of clipped updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedddpm_protocol.agreement.methods import sessions_by_part
from fedddpm_protocol.agreement.spec import NOTHING_KNOWN, RINGS, ScaleReference

WIDEST_BITS = max(RINGS)  # never wraps


@dataclass(frozen=True)
class ValuesRing:
    """Width of the ring, and the sum that the scale follows from."""

    bits: int
    reference: ScaleReference = NOTHING_KNOWN


def next_ring(bits: int, first_bits: int, reference: ScaleReference, *, widest: bool) -> ValuesRing:
    """The ring of a part: of ``bits`` where ``reference`` sizes it, and of ``first_bits`` at least where nothing does.

    ``widest``: a narrow one will not do, since a sum of the part left its ring, or may not be made once more.
    """
    if widest:
        return ValuesRing(WIDEST_BITS)
    if reference == NOTHING_KNOWN:
        return ValuesRing(max(bits, first_bits))
    return ValuesRing(bits, reference)


def largest_references(by_session: Mapping[str, ScaleReference]) -> dict[str, ScaleReference]:
    """By part, the reference of the largest norm among the opened sums of its shards."""
    return {
        part: max((by_session[session] for session in sessions), key=lambda reference: reference.norm)
        for part, sessions in sessions_by_part(by_session).items()
    }
