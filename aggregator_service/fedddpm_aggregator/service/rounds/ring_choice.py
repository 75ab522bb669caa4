"""Which ring each part gets in the next attempt of a run, by what the database knows of its sums (see ``rings``).

The widest is also for a part whose members may have answered for a sum of it over this base, since they refuse to be
rounded twice with public dither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import RunRow
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.rings import ValuesRing, largest_references, next_ring
from fedddpm_protocol.agreement.spec import NOTHING_KNOWN, ScaleReference
from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives import canonical


def next_rings(db: Session, run: RunRow, parts: Iterable[str], round_index: int) -> dict[str, ValuesRing]:
    """The ring of each part in the next attempt of a run, which is one at ``round_index``."""
    references = _newest_references(db, run.id, frozenset(parts))
    rings = {}
    for part in parts:
        opened_in, reference = references.get(part, (-1, NOTHING_KNOWN))
        again = queries.wrapped_after(db, run.id, part, opened_in) or queries.was_confirmed(
            db, run.id, round_index, part
        )
        rings[part] = next_ring(run.bits, run.first_bits, reference, widest=again)
    return rings


def _newest_references(db: Session, run_id: int, parts: frozenset[str]) -> Mapping[str, tuple[int, ScaleReference]]:
    """By part: the newest round that opened it, and the reference it left."""
    found: dict[str, tuple[int, ScaleReference]] = {}
    for row in queries.results_backwards(db, run_id):
        try:
            result = canonical.decode(RoundResult, row.body)
        except MalformedError:  # of an earlier version of this program, as everything before it
            break
        opened = {part.part: part.reference for part in result.parts if part.opened}
        for name, largest in largest_references(opened).items():
            found.setdefault(name, (result.round, largest))
        if found.keys() >= parts:
            break
    return found
