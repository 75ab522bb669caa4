"""All that a run came to so far, of one moment: what ``fedddpm-aggregator rounds`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedddpm_aggregator.service.alarms import alarms_in
from fedddpm_aggregator.service.conduct import Conduct, conduct_in
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.history.session_lines import SessionLine, overview_of, run_called
from fedddpm_aggregator.service.history.traffic import RoundTraffic, models_of, traffic_by_round
from fedddpm_aggregator.service.suspicion import Suspicion, suspicion_in
from fedddpm_protocol.encoding.alarms import Alarm


@dataclass(frozen=True)
class RunReport:
    """One run."""

    lines: Sequence[SessionLine]
    traffic: Sequence[RoundTraffic]
    alarms: Sequence[Alarm]
    conduct: Sequence[Conduct]  # members that a coordinator should call
    suspicion: Suspicion | None  # among whom the one is that spoils sums


def run_report(ctx: Context, run_name: str | None = None) -> RunReport:
    """The report of a run (the newest by default); OperatorError if there is no such run."""
    with ctx.database.read() as db:
        run = run_called(db, run_name)
        lines, alarms, suspected = overview_of(db, run), alarms_in(db, run), suspicion_in(ctx, db, run)
        conduct = conduct_in(ctx, db, run, suspected)
    return RunReport(lines, traffic_by_round(lines, models_of(run)), alarms, conduct, suspected)
