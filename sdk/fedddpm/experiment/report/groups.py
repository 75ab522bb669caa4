"""Runs that differ in nothing but the seed, put together; what they measured, as mean and spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fedddpm.evaluation.scores import Scores
from fedddpm.experiment.report.table import INSECURE, NONE
from fedddpm.experiment.results import CENTRALISED, Measured, RoundRecord, RunRecord, StudyResults

_METHODS = ("FULL", "USPLIT", "ULATDEC", "UDEC", "TURN", CENTRALISED)
_AGGREGATION = {"secure": "secure", "plain": INSECURE, "none": "none"}


@dataclass(frozen=True)
class Group:
    """Runs of one setting, by seed."""

    runs: tuple[RunRecord, ...]

    @property
    def first(self) -> RunRecord:
        """The run of the lowest seed: it stands for what all have in common."""
        return self.runs[0]

    @property
    def aggregation(self) -> str:
        """The word "secure", or in words that nobody overlooks that it was not."""
        return _AGGREGATION[self.first.aggregation]

    @property
    def bits(self) -> str:
        """Width of the ring in which updates travelled, as a cell of a table."""
        return str(self.first.bits) if self.first.bits else NONE

    @property
    def centralised(self) -> bool:
        """Whether this is training in one place."""
        return self.first.method == CENTRALISED


@dataclass(frozen=True)
class Scored:
    """The same measurement (epochs, net, sample count, saving) of all runs of a group that have it."""

    group: Group
    epochs: int
    measured: tuple[Measured, ...]

    @property
    def pooled(self) -> tuple[Scores, ...]:
        """Scores of images from all institutions' networks together, one a seed."""
        return tuple(measured.pooled for measured in self.measured)

    @property
    def per_client(self) -> tuple[Scores, ...]:
        """Scores institution by institution, of all seeds; empty where all have one network."""
        return tuple(scores for measured in self.measured for scores in measured.clients.values())


def grouped(results: StudyResults) -> list[Group]:
    """The study's runs by setting, in reading order: K, split, network, method, widest ring first."""
    found: dict[tuple[int, str, str, int, int, str], list[RunRecord]] = {}
    for run in results.runs:
        place = _METHODS.index(run.method) if run.method in _METHODS else len(_METHODS)
        key = (run.institutions, run.split, run.network, place, -run.bits, run.aggregation)
        found.setdefault(key, []).append(run)
    return [Group(tuple(sorted(found[key], key=lambda run: run.seed))) for key in sorted(found)]


def final_scores(groups: Iterable[Group]) -> list[Scored]:
    """Every final measurement, the same ones of a group's seeds together: Inception first, then by samples."""
    scored = []
    for group in groups:
        found: dict[tuple[str, str, int, str, int], dict[str, Measured]] = {}
        for run in group.runs:
            for measured in run.final:
                epochs = measured.epochs or (run.rounds[-1].epochs if run.rounds else 0)
                one = measured.pooled
                key = ("0" if one.metric == "FID" else "1", one.net, one.n, one.saving, epochs)
                found.setdefault(key, {}).setdefault(run.name, measured)  # R * E may be 15, the other baseline
        scored += [Scored(group, key[-1], tuple(found[key].values())) for key in sorted(found)]
    return scored


def rounds_by_epochs(group: Group, value: Callable[[RoundRecord], float | None]) -> dict[int, list[float]]:
    """Local epochs done -> the value in each run that has it by then."""
    found: dict[int, list[float]] = {}
    for run in group.runs:
        for record in run.rounds:
            number = value(record)
            if number is not None:
                found.setdefault(record.epochs, []).append(number)
    return dict(sorted(found.items()))


def decimals(value: float) -> int:
    """Digits after the point that show three significant ones, six at most."""
    return 0 if value == 0 else min(6, max(0, 2 - math.floor(math.log10(abs(value)))))


def short(value: float) -> str:
    """Three significant digits, never with an exponent."""
    return f"{value:.{decimals(value)}f}"


def mean_and_spread(values: Sequence[float]) -> str:
    """As "43.2 ± 1.1": mean and standard deviation (n - 1); the mean alone for one value, a dash for none."""
    if not values:
        return NONE
    mean = statistics.fmean(values)
    return short(mean) if len(values) == 1 else f"{short(mean)} ± {statistics.stdev(values):.{decimals(mean)}f}"
