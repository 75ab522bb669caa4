"""Whether runs are what the root signed: charters, their order, and what the tables tell of them."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import func, select

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import RunRow
from fedddpm_aggregator.errors import HistoryError
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.chartered import charter_document
from fedddpm_protocol.agreement.charter import Charter, open_charter
from fedddpm_protocol.agreement.clipping import ADAPTIVE, next_clip_norm
from fedddpm_protocol.agreement.lineage import Lineage, require_follows
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives import canonical


def verify_charter(ctx: Context, run: RunRow, federation: str, counts: Counter[str]) -> Charter | None:
    """The charter of a run as the pinned root signed it; None for a run from before charters. HistoryError."""
    document = charter_document(run)
    with ctx.database.read() as db:
        row = queries.federation(db)
        before = db.scalar(select(func.max(RunRow.charter_number)).where(RunRow.id < run.id)) or 0
    if document is None or row is None or row.root_public_key is None:
        if document is not None or before:  # runs with a charter came first
            raise HistoryError("it has no charter, or there is no root key that could have signed it")
        return None
    charter = open_charter(document, row.root_public_key)
    if charter.federation != federation:
        raise HistoryError(f"its charter is one of federation {charter.federation!r}")
    if charter.number != run.charter_number or charter.number <= before:
        raise HistoryError(f"its charter has number {charter.number}, which does not follow those before it")
    if _told(run) != _signed(charter):
        raise HistoryError("its row tells something else than its charter")
    counts["charters"] += 1
    return charter


def verify_follows(spec: RoundSpec, run: RunRow, charter: Charter | None, lineage: Lineage, roster: Roster) -> None:
    """HistoryError or CharterError unless a specification follows from its run's charter and the results before it."""
    if charter is not None:
        require_follows(spec, charter, lineage, roster)
        return
    first, newest = ({one.part: one.norm for one in norms} for norms in (lineage.first_norms, lineage.newest_norms))
    follows = next_clip_norm(run.clip_norm, first, newest) if run.clip == ADAPTIVE else run.clip_norm
    if spec.clip_norm != follows:
        raise HistoryError(
            f"its clip norm {spec.clip_norm:.6g} does not follow from the results before it, which give {follows:.6g}"
        )


def _told(run: RunRow) -> tuple[object, ...]:
    return (
        *(run.name, run.method, run.rounds, run.architecture, run.initial_model, run.initial_seed, run.min_cohort),
        *(run.epochs, run.max_steps, run.batch_size, run.learning_rate),
        *(run.weighting, run.weight_cap, run.clip, run.clip_norm, run.bits, run.first_bits, run.chunk_coordinates),
    )


def _signed(charter: Charter) -> tuple[object, ...]:
    first, training, travel = charter.first_model, charter.training, charter.travel
    model, architecture = first.model_hash.hex(), canonical.encode(charter.architecture)
    return (
        *(charter.run, charter.method, charter.rounds, architecture, model, first.seed.hex(), charter.min_cohort),
        *(training.epochs, training.max_steps, training.batch_size, training.learning_rate),
        *(travel.weighting, travel.weight_cap, travel.clip, travel.clip_norm),
        *(travel.bits, travel.first_bits, travel.chunk_coordinates),
    )
