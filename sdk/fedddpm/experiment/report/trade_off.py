"""What finished runs moved over the wire, against how good they became."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fedddpm.evaluation.scores import Scores
from fedddpm.experiment.report.groups import Group, grouped, mean_and_spread
from fedddpm.experiment.report.table import NONE, Column, Table
from fedddpm.experiment.results import Measured, RunRecord, StudyResults
from fedddpm.transport.traffic import fedavg_bytes, less_than_fedavg

_Measurement = tuple[str, str, int, str]  # metric, net, number of images, way of saving


@dataclass(frozen=True)
class Point:
    """The finished runs of one setting."""

    group: Group
    moved: float  # bytes of all institutions, mean over the seeds; 0.0: nothing is known, or nothing was moved
    fedavg: int  # bytes of naive FedAvg over as many rounds
    losses: tuple[float, ...]  # held out, after the last round, one a seed
    scores: tuple[Scores, ...]  # of the measurement that all points have in common; empty without one


def points(results: StudyResults, *, as_the_paper: bool = False) -> list[Point]:
    """One point a setting that has finished runs, in the order of tables.

    ``as_the_paper``: measured by FID on images that were saved as the paper's code saves them; then a point without
    scores was not.
    """
    finished = [Group(runs) for group in grouped(results) if (runs := tuple(run for run in group.runs if run.done))]
    every = [run for group in finished for run in group.runs]
    shared = _shared_measurement(every, _as_the_paper if as_the_paper else _any)
    return [_point(group, shared) for group in finished]


def moved_bytes(run: RunRecord) -> int:
    """Payload of all institutions, up and down, counted as N is: all but the final model."""
    down = [record.payload_down for record in run.rounds]
    return sum(record.payload_up for record in run.rounds) + sum(down[:-1])


def _point(group: Group, shared: _Measurement | None) -> Point:
    run = group.first
    found = [_finals(run).get(shared) for run in group.runs] if shared else []
    return Point(
        group,
        statistics.fmean(moved_bytes(run) for run in group.runs),
        0 if group.centralised else run.institutions * len(run.rounds) * fedavg_bytes(sum(run.parameters.values())),
        tuple(run.rounds[-1].loss for run in group.runs if run.rounds),
        tuple(measured.pooled for measured in found if measured),
    )


def _finals(run: RunRecord) -> dict[_Measurement, Measured]:
    """What was measured at the end, of several moments the last; else the score of the last round."""
    last = [run.rounds[-1].measured] if run.rounds and not run.final else []
    measured = sorted((one for one in [*last, *run.final] if one is not None), key=lambda one: one.epochs)
    return {(one.pooled.metric, one.pooled.net, one.pooled.n, one.pooled.saving): one for one in measured}


def _any(_: _Measurement) -> bool:
    return True


def _as_the_paper(one: _Measurement) -> bool:
    metric, _, _, saving = one
    return metric == "FID" and saving == "clipped"


def _shared_measurement(runs: Iterable[RunRecord], allowed: Callable[[_Measurement], bool]) -> _Measurement | None:
    """What every run was measured by: FD before FID (it needs fewer images), most images, saved properly."""
    every = [{one for one in _finals(run) if allowed(one)} for run in runs]
    common = set.intersection(*every) if every else set()
    return max(common, key=lambda one: (one[0] == "FD", one[3] == "rescaled", one[2], one[1]), default=None)


def trade_off_table(results: StudyResults) -> Table:
    """Loss, distance and bytes of every setting side by side; empty before anything is known of bytes."""
    found = points(results)
    scored = next((point.scores[0] for point in found if point.scores), None)
    columns = (
        Column("Method"),
        Column("K", True),
        Column("Split"),
        Column("Network"),
        Column("Aggregation"),
        Column("Bits", True),
        Column("Held-out loss", True),
        Column(scored.label if scored else "Distance", True),
        Column("Real images", True),
        Column("MB in all", True),
        Column("Less than FedAvg", True),
        Column("Sums made again", True),
    )
    rows = [_row(point) for point in found] if any(point.moved for point in found) else []
    notes = (
        "MB are those of all institutions over the whole run, up and down, counted as N is: without the final model;"
        " theta_0 follows from its seed. FedAvg moves the whole network up and down in float32 in each round.",
        "A ring is wider in the first round, before the size of an update is known. Sums made again were too large for"
        " their ring; their bytes are counted.",
    )
    table = Table("Traffic against quality", columns, tuple(rows), notes)
    return table.without_constant("K", "Split", "Network", "Bits", "Distance")


def _row(point: Point) -> tuple[str, ...]:
    run, moved = point.group.first, point.moved
    count = len(run.rounds)
    less = f"{less_than_fedavg(round(moved), point.fedavg):.1f} %" if moved and point.fedavg else NONE
    again = sum(record.wrapped for run in point.group.runs for record in run.rounds)
    return (
        run.method,
        NONE if point.group.centralised else str(run.institutions),
        NONE if point.group.centralised else run.split,
        run.network,
        point.group.aggregation,
        point.group.bits,
        _losses(point.losses) if count else NONE,
        mean_and_spread([scores.distance for scores in point.scores]),
        mean_and_spread([point.scores[0].floor]) if point.scores else NONE,
        f"{moved / 1e6:.1f}" if moved else NONE,
        less,
        NONE if point.group.centralised else str(again),
    )


def _losses(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"
