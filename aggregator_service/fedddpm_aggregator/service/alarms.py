"""Alarms of a run: what rings with a result, and what the aggregator does then.

The rule is the protocol's and needs signed results alone, so that every institution rings the same alarms by itself.
"""

from __future__ import annotations

import logging
from itertools import islice

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import ResultRow, RunRow
from fedddpm_aggregator.service import audit
from fedddpm_aggregator.service.context import Context
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.encoding.alarms import REMEMBERED, Alarm, RoundFigures, alarms_at, alarms_of
from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives import canonical

log = logging.getLogger(__name__)
TELL, HOLD = "tell", "hold"
ON_ALARM = (TELL, HOLD)  # what a run does then


def alarms_in(db: Session, run: RunRow) -> list[Alarm]:
    """Everything that rang in a run so far."""
    bodies = db.scalars(select(ResultRow.body).where(ResultRow.run_id == run.id).order_by(ResultRow.round))
    return alarms_of([result for body in bodies if (result := decoded(body)) is not None])


def decoded(body: bytes) -> RoundResult | None:
    """A stored result; None for one that an earlier version of this program wrote in another record."""
    try:
        return canonical.decode(RoundResult, body)
    except MalformedError:
        return None


def ring(ctx: Context, db: Session, run: RunRow, result: RoundResult) -> None:
    """Tell of what rings with a result that is about to be published, and pause a run that is to be held then.

    The caller holds the lock of the newest attempt, and has not stored the result yet.
    """
    rows = islice(queries.results_backwards(db, run.id), REMEMBERED)
    earlier = [before for row in rows if (before := decoded(row.body)) is not None][::-1]
    alarms = alarms_at([RoundFigures.of(one) for one in earlier], RoundFigures.of(result))
    for alarm in alarms:
        log.warning("alarm", extra={"fields": {"run": run.name, "round": alarm.round, "reason": alarm.text}})
        place: dict[str, str | int] = {"run": run.name, "round": alarm.round}
        audit.record(ctx, db, audit.SERVER, "alarm", kind=alarm.kind, reason=alarm.text, **place)
    if alarms and run.on_alarm == HOLD and run.status == "running" and result.round + 1 < run.rounds:
        run.status = "paused"
        run.reason = f"an alarm rang after round {result.round + 1}: {'; '.join(map(str, alarms))}"
        audit.record(ctx, db, audit.SERVER, "run paused", run=run.name, reason=run.reason)
