"""The sessions of a run, one line each, for people."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, ResultRow, RunRow
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.service import blame
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.sessions import join_message
from fedddpm_protocol.agreement.result import PartResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives import canonical, ring
from fedddpm_protocol.wire.api import Count


@dataclass(frozen=True)
class SessionLine:
    """One session of one attempt, for people."""

    run: str
    method: str
    round: int
    attempt: int
    part: str
    phase: str
    joined: tuple[str, ...]
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    sums: tuple[Count, ...]  # opened: weight, loss before, loss after in protocol units
    reason: str | None
    verdicts: tuple[str, ...]  # who spoiled it, with the names of the evidence
    base_model: str  # hex
    model: str | None  # hex of the model that the attempt published
    bits: int  # ring of the values
    clip_norm: float  # of the round
    upload_bytes: Count  # masked values and sums of one survivor
    opened_bytes: Count  # opened values; 0: none were published


def run_called(db: Session, name: str | None) -> RunRow:
    """A run by its name, the newest for None; OperatorError if there is none."""
    run = queries.current_run(db) if name is None else db.scalar(select(RunRow).where(RunRow.name == name))
    if run is None:
        raise OperatorError("there is no run yet" if name is None else f"there is no run called {name!r}")
    return run


def overview(ctx: Context, run_name: str | None = None) -> list[SessionLine]:
    """All sessions of a run (the newest by default) in order; OperatorError if there is no such run.

    Attempts that an earlier version of this program wrote in other records are left out.
    """
    with ctx.database.read() as db:
        return overview_of(db, run_called(db, run_name))


def overview_of(db: Session, run: RunRow) -> list[SessionLine]:
    """As :func:`overview`, of a run and at the moment that ``db`` sees."""
    attempts = db.scalars(select(AttemptRow).where(AttemptRow.run_id == run.id).order_by(AttemptRow.id)).all()
    return [line for attempt in attempts for line in lines_of(db, run, attempt)]


def lines_of(db: Session, run: RunRow, attempt: AttemptRow) -> list[SessionLine]:
    """The sessions of one attempt; none if an earlier version of this program wrote it in other records."""
    lines = []
    published = db.get(ResultRow, (run.id, attempt.round)) if attempt.status == "done" else None
    try:
        spec = canonical.decode(RoundSpec, attempt.spec)
    except MalformedError:
        return []
    for row in queries.sessions_of(db, attempt.id):
        result = canonical.decode(PartResult, row.result) if row.result is not None else None
        joins = queries.joins_of(db, row.id)
        uploads = tuple(sorted(queries.members_of(db, row.id, queries.UPLOAD)))
        sizes = [ring.packed_bytes(segment.coordinates, segment.bits) for segment in spec.part(row.part).segments]
        line = SessionLine(
            run=run.name,
            method=run.method,
            round=attempt.round,
            attempt=attempt.attempt,
            part=row.part,
            phase=row.phase,
            joined=tuple(join_message(join).parse().id for join in joins),
            cohort=tuple(join.member for join in joins if join.in_cohort),
            survivors=result.survivors if result else uploads,
            sums=result.sums if result else (),
            reason=row.reason,
            verdicts=tuple(blame.told(verdict) for verdict in blame.verdicts_in(db, row.id)),
            base_model=spec.base_model_hash.hex(),
            model=published.model if published is not None else None,
            bits=spec.part(row.part).values.bits,
            clip_norm=spec.clip_norm,
            upload_bytes=sum(sizes),
            opened_bytes=sizes[0] if result and published is not None else 0,
        )
        lines.append(line)
    return lines
