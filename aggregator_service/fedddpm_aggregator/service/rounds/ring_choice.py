"""In which ring the values of each part travel in the next attempt, and what their scale follows from.

A narrow ring is sized by the part's last opened sum; where the part has shards, by that of the largest norm. Where
nothing is known of it the ring is wider. After a sum that left its ring the part travels once in the widest, which
holds any sum of clipped updates; and so it does when members may have answered for a sum of it over this base, since
they refuse to be rounded twice with public dither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import RunRow
from fedddpm_protocol.agreement.methods import sessions_by_part
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.spec import NOTHING_KNOWN, RINGS, ScaleReference
from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives import canonical

WIDEST_BITS = max(RINGS)  # never wraps


@dataclass(frozen=True)
class ValuesRing:
    """Width of the ring, and the sum that the scale follows from."""

    bits: int
    reference: ScaleReference = NOTHING_KNOWN


def next_rings(db: Session, run: RunRow, parts: Iterable[str], round_index: int) -> dict[str, ValuesRing]:
    """The ring of each part in the next attempt of a run, which is one at ``round_index``."""
    references = _newest_references(db, run.id, frozenset(parts))
    rings = {}
    for part in parts:
        opened_in, reference = references.get(part, (-1, NOTHING_KNOWN))
        again = queries.wrapped_after(db, run.id, part, opened_in) or queries.was_confirmed(
            db, run.id, round_index, part
        )
        rings[part] = ValuesRing(WIDEST_BITS) if again else _sized_ring(run, reference)
    return rings


def _sized_ring(run: RunRow, reference: ScaleReference) -> ValuesRing:
    if reference == NOTHING_KNOWN:
        return ValuesRing(max(run.bits, run.first_bits))
    return ValuesRing(run.bits, reference)


def _newest_references(db: Session, run_id: int, parts: frozenset[str]) -> Mapping[str, tuple[int, ScaleReference]]:
    """By part: the newest round that opened it, and the reference it left."""
    found: dict[str, tuple[int, ScaleReference]] = {}
    for row in queries.results_backwards(db, run_id):
        try:
            result = canonical.decode(RoundResult, row.body)
        except MalformedError:  # of an earlier version of this program, as everything before it
            break
        by_session = {part.part: part.reference for part in result.parts if part.opened}
        for name, shards in sessions_by_part(by_session).items():
            largest = max((by_session[shard] for shard in shards), key=lambda reference: reference.norm)
            found.setdefault(name, (result.round, largest))
        if found.keys() >= parts:
            break
    return found
