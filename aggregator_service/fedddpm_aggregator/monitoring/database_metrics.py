"""The database's figures as metrics, read when somebody scrapes: every replica says the same.

So a dashboard takes their maximum over replicas, never their sum.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from fedddpm_aggregator.monitoring.figures import FigureReader, Figures, RunFigures
from fedddpm_aggregator.monitoring.probe import Probe
from fedddpm_aggregator.monitoring.run_totals import ROUND_S
from fedddpm_aggregator.service.context import Context
from fedddpm_protocol.encoding.alarms import ALARMS
from fedddpm_protocol.wire.phases import Phase

log = logging.getLogger(__name__)
PATIENCE_S = 3.0  # for the database, before a scrape goes on without it
RUN_STATUSES = ("running", "stalled", "paused", "finished", "ended")
ATTEMPT_STATUSES = ("active", "done", "failed")


class DatabaseCollector(Collector):
    """Metrics of the database's figures; only ``fedddpm_database_up`` 0 where it does not answer in time."""

    def __init__(self, ctx: Context) -> None:
        self._figures = Probe(FigureReader(ctx).read, keep_s=1.0)

    def describe(self) -> list[Metric]:
        """Names are not asked for at registration: the database may be away then."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric, in the order of the help texts below."""
        up = GaugeMetricFamily("fedddpm_database_up", "1 where the database answers in time")
        try:
            figures = self._figures.answer(PATIENCE_S)
        except Exception as error:  # noqa: BLE001 - whatever it is, the database cannot be read
            log.warning("metrics without the database", extra={"fields": {"error": type(error).__name__}})
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        yield up
        yield from _federation(figures)
        yield from _now(figures.newest)
        yield from _totals(figures.newest)
        yield from _warnings(figures.newest)


def _federation(figures: Figures) -> Iterator[Metric]:
    yield GaugeMetricFamily("fedddpm_members_enrolled", "Members of the newest roster", figures.enrolled)
    yield GaugeMetricFamily("fedddpm_roster_version", "Version of the newest roster", figures.roster_version)
    runs = GaugeMetricFamily("fedddpm_runs", "Runs", labels=["status"])
    for status in RUN_STATUSES:
        runs.add_metric((status,), figures.runs.get(status, 0))
    yield runs


def _now(newest: tuple[RunFigures, ...]) -> Iterator[Metric]:
    status = GaugeMetricFamily("fedddpm_run_status", "1 for the status that a run has", labels=["run", "status"])
    planned = GaugeMetricFamily("fedddpm_rounds_planned", "Rounds that a run shall have", labels=["run"])
    sessions = GaugeMetricFamily(
        "fedddpm_sessions", "Secure sums of the newest attempt by phase", labels=["run", "phase"]
    )
    seconds = GaugeMetricFamily(
        "fedddpm_phase_seconds", "Longest time of a sum in its present phase, uptime", labels=["run", "phase"]
    )
    members = GaugeMetricFamily("fedddpm_members", "Members of the newest attempt by how far", labels=["run", "state"])
    for run in newest:
        for name in RUN_STATUSES:
            status.add_metric((run.name, name), int(run.status == name))
        planned.add_metric((run.name,), run.planned)
        for phase in Phase:
            sessions.add_metric((run.name, phase), run.phases.get(phase, 0))
            seconds.add_metric((run.name, phase), run.phase_s.get(phase, 0.0))
        for state, count in (("joined", run.joined), ("cohort", run.cohort), ("survived", run.survivors)):
            members.add_metric((run.name, state), count)
    yield from (status, planned, sessions, seconds, members)


def _totals(newest: tuple[RunFigures, ...]) -> Iterator[Metric]:
    published = CounterMetricFamily("fedddpm_rounds_published", "Rounds with a signed result", labels=["run"])
    attempts = GaugeMetricFamily("fedddpm_attempts", "Attempts at rounds by status", labels=["run", "status"])
    failed = CounterMetricFamily("fedddpm_attempts_failed", "Attempts that failed", labels=["run"])
    drops = CounterMetricFamily("fedddpm_drops", "Cohort minus survivors, over opened sums", labels=["run"])
    moved = CounterMetricFamily("fedddpm_traffic_bytes", "Payload of published rounds", labels=["run", "direction"])
    float32 = CounterMetricFamily(
        "fedddpm_traffic_float32_bytes", "What the whole network in float32 would have moved", labels=["run"]
    )
    lasted = HistogramMetricFamily(
        "fedddpm_round_seconds", "Published rounds, from the start of their last attempt", labels=["run"]
    )
    for run in newest:
        published.add_metric((run.name,), run.published)
        failed.add_metric((run.name,), run.attempts.get("failed", 0))
        for status in ATTEMPT_STATUSES:
            attempts.add_metric((run.name, status), run.attempts.get(status, 0))
        if run.tally is not None:
            drops.add_metric((run.name,), run.tally.drops)
            moved.add_metric((run.name, "up"), run.tally.up)
            moved.add_metric((run.name, "down"), run.tally.down)
            float32.add_metric((run.name,), run.tally.float32)
            lasted.add_metric((run.name,), _buckets(run.tally.durations), run.tally.duration_s)
    yield from (published, attempts, failed, drops, moved, float32, lasted)


def _warnings(newest: tuple[RunFigures, ...]) -> Iterator[Metric]:
    rang = CounterMetricFamily("fedddpm_alarms", "Alarms that rang, by kind", labels=["run", "kind"])
    rings = GaugeMetricFamily("fedddpm_alarm", "1 where the newest result rang an alarm", labels=["run", "kind"])
    named = GaugeMetricFamily(
        "fedddpm_members_named", "Members late, silent or with two contents; rounds names them", labels=["run"]
    )
    for run in newest:
        named.add_metric((run.name,), run.named)
        if run.tally is not None:
            for kind in ALARMS:
                rang.add_metric((run.name, kind), run.tally.alarms[kind])
                rings.add_metric((run.name, kind), int(kind in run.tally.ringing))
    yield from (rang, rings, named)


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    """Counts by bound, each with all below it, as Prometheus wants them."""
    bounds = [*(str(bound) for bound in ROUND_S), "+Inf"]
    return [(bound, float(sum(counts[: place + 1]))) for place, bound in enumerate(bounds)]
