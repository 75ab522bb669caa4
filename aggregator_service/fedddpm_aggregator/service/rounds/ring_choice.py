"""Which ring each part gets in the next attempt of a run, by what the database knows of its sums (see ``rings``).

The widest is also for a part whose members may have answered for a sum of it over this base, since they refuse to be
rounded twice with public dither.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_protocol.agreement.charter import Charter
from fedddpm_protocol.agreement.lineage import Lineage
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.rings import ValuesRing, next_ring


def next_rings(db: Session, run_id: int, charter: Charter, lineage: Lineage) -> dict[str, ValuesRing]:
    """The ring of each part in the next attempt of a run, after the results in ``lineage``."""
    travel, rings = charter.travel, {}
    for part in Method(charter.method).sessions:
        again = queries.wrapped_lately(db, run_id, part) or queries.was_confirmed(db, run_id, lineage.results, part)
        rings[part] = next_ring(travel.bits, travel.first_bits, lineage.reference(part, charter.turns), widest=again)
    return rings
