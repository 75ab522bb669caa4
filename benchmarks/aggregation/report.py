"""Measurements as rows, tables and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.aggregation.cases import FLOWER_NEIGHBOURS, Case, Measured, total_s
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

MIB = 2**20
_RATIOS = ("vs Flower", "same masks", "limit s", "limits")
CLIENT = (
    "scheme",
    "masks",
    "CPU s",
    "kernel s",
    "model s",
    "keys s",
    "extra MiB",
    "B up",
    "B down",
    *_RATIOS,
    "masking",
)
SERVER = ("scheme", "drops", "masks", "CPU s", "kernel s", "no digests", "extra MiB", *_RATIOS)
NOTES = (
    "CPU s: best of the repetitions, one thread; institution: from the others' shares to the upload and its digests; "
    "aggregator: from the uploads to the next model",
    "kernel s: the operating system's share, which is mostly the handing out of fresh memory and varies most",
    "model s: what a client does after the sum is opened; keys s: JOIN and SHARES, the same for any length of vector",
    "extra MiB: peak above the vectors of the model; B up, B down: bytes a parameter",
    "vs Flower: Flower's CPU s over this one's; same masks: Flower's with as many neighbours as this one's",
    "limit s: a bare AES-256-CTR + add loop with the same masks and bytes; limits: CPU s over it; masking: the masks "
    "alone over it",
)


@dataclass(frozen=True)
class Row:
    """One role of one scheme in one case; seconds are CPU seconds of one process."""

    scheme: str
    role: str
    coordinates: int
    cohort: int
    drops: int
    bits: int
    neighbours: int
    masks: int
    repetitions: int
    cpu_s: float  # best
    median_cpu_s: float
    kernel_s: float  # of the best, in the operating system
    steps_s: dict[str, float]  # of the best
    key_exchange_s: float | None
    after_s: float | None  # client: from the opened sum to the next model
    extra_bytes: int
    bytes_up: float | None  # a parameter
    bytes_down: float | None
    error: float | None  # squared, of the opened mean, over the squared mean
    limit_s: float | None
    times_limit: float | None
    masking_times_limit: float | None
    faster_than_flower: float | None
    faster_than_flower_same_masks: float | None

    @property
    def without_digests_s(self) -> float:
        """CPU seconds that are not hashing."""
        return self.cpu_s - self.steps_s.get("digests", 0.0) - self.steps_s.get("digest", 0.0)


def rows_of(measured: Sequence[Measured]) -> list[Row]:
    """All rows of a case."""
    return [_row(one, measured) for one in measured]


def _row(one: Measured, all_of: Sequence[Measured]) -> Row:
    best, cpu_s = min(one.costs, key=total_s), _best_s(one)
    limit_s = min(one.limits_s) if one.limits_s else None
    mask_s = best["cpu_s"].get("mask") if one.role == "client" and "encode" in best["cpu_s"] else None
    per_flower = {other.scheme.neighbours: _best_s(other) for other in all_of if _is_flower_beside(other, one)}
    usual, others = min(FLOWER_NEIGHBOURS, one.case.cohort - 1), one.case.cohort - 1
    own_masks = one.scheme.neighbours == others or one.scheme.worker == "flower_worker"
    server = next((x for x in all_of if x.role == "server" and x.scheme == one.scheme), None)
    return Row(
        scheme=one.scheme.name,
        role=one.role,
        coordinates=one.case.coordinates,
        cohort=one.case.cohort,
        drops=one.drops,
        bits=one.scheme.bits,
        neighbours=one.scheme.neighbours,
        masks=one.scheme.masks(one.role, one.case, one.drops) if one.scheme.neighbours else 0,
        repetitions=len(one.costs),
        cpu_s=cpu_s,
        median_cpu_s=statistics.median(map(total_s, one.costs)),
        kernel_s=best["kernel_s"],
        steps_s=best["cpu_s"],
        key_exchange_s=best.get("exchange_s"),
        after_s=_after_s(one, server),
        extra_bytes=max(cost["extra_bytes"] for cost in one.costs),
        bytes_up=_per_parameter(one, "bytes_up"),
        bytes_down=_per_parameter(server, "bytes_down") if server else None,
        error=max((cost["error"] for cost in one.costs if cost.get("error") is not None), default=None),
        limit_s=limit_s,
        times_limit=cpu_s / limit_s if limit_s else None,
        masking_times_limit=mask_s / limit_s if limit_s and mask_s else None,
        faster_than_flower=per_flower[usual] / cpu_s if usual in per_flower else None,
        faster_than_flower_same_masks=per_flower[others] / cpu_s if own_masks and others in per_flower else None,
    )


def _is_flower_beside(other: Measured, one: Measured) -> bool:
    return (other.scheme.worker, other.role, other.drops) == ("flower_worker", one.role, one.drops)


def _best_s(one: Measured) -> float:
    return min(map(total_s, one.costs))


def _after_s(one: Measured, server: Measured | None) -> float | None:
    """What the client's way to the next model takes; ours does on it what the server does."""
    if one.role != "client":
        return None
    if "after_s" in one.costs[0]:
        return min(float(cost["after_s"]) for cost in one.costs)
    if server and "next model" in server.costs[0]["cpu_s"]:
        return min(float(cost["cpu_s"]["next model"]) for cost in server.costs)
    return None


def _per_parameter(one: Measured, what: str) -> float | None:
    size = one.costs[0].get(what)
    return None if size is None else float(size) / one.case.coordinates


def tables(case: Case, rows: Sequence[Row], repetitions: int) -> list[Table]:
    """What institutions and what the aggregator spend in one case."""
    size = f"{case.coordinates:,} parameters, {case.cohort} institutions, {repetitions} repetitions"
    client = [_client_cells(row) for row in rows if row.role == "client"]
    server = [_server_cells(row) for row in rows if row.role == "server"]
    return [_table(f"An institution: {size}", CLIENT, client), _table(f"The aggregator: {size}", SERVER, server)]


def _table(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="right" if column else "left", no_wrap=not column)
    for line in lines:
        table.add_row(*line)
    return table


def _client_cells(row: Row) -> list[str]:
    after = [_number(row.after_s, ".4f"), _number(row.key_exchange_s, ".4f")]
    seconds = [f"{row.cpu_s:.4f}", f"{row.kernel_s:.4f}", *after]
    sizes = [f"{row.extra_bytes / MIB:.1f}", _number(row.bytes_up, ".2f"), _number(row.bytes_down, ".2f")]
    return [row.scheme, str(row.masks), *seconds, *sizes, *_ratios(row), _number(row.masking_times_limit, ".2f")]


def _server_cells(row: Row) -> list[str]:
    seconds = [f"{row.cpu_s:.4f}", f"{row.kernel_s:.4f}", f"{row.without_digests_s:.4f}"]
    return [row.scheme, str(row.drops), str(row.masks), *seconds, f"{row.extra_bytes / MIB:.1f}", *_ratios(row)]


def _ratios(row: Row) -> list[str]:
    ratios = (row.faster_than_flower, row.faster_than_flower_same_masks)
    limits = (_number(row.limit_s, ".4f"), _number(row.times_limit, ".2f"))
    return [*(_number(ratio, ".1f", "x") for ratio in ratios), *limits]


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """CPU seconds by scheme and size of the cohort, one column of pictures for each length of vector."""
    sizes = sorted({row.coordinates for row in rows})
    figure = Figure(figsize=(6.5 * len(sizes), 8), layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever the machine has
    axes = figure.subplots(2, len(sizes), squeeze=False)
    for column, coordinates in enumerate(sizes):
        for line, role in enumerate(("client", "server")):
            chosen = [row for row in rows if row.coordinates == coordinates and row.role == role and row.drops == 0]
            _bars(axes[line][column], chosen)
            who = "institution" if role == "client" else "aggregator"
            axes[line][column].set_title(f"{who}, {coordinates:,} parameters")
    # The shortest vectors come first and have the most schemes.
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


def _bars(axis: Axes, rows: Sequence[Row]) -> None:
    """One group of bars a cohort; a line across each bar is its bare loop."""
    cohorts = sorted({row.cohort for row in rows})
    names = list(dict.fromkeys(_family(row) for row in rows))
    width = 0.8 / len(names)
    for position, name in enumerate(names):
        own = [row for row in rows if _family(row) == name]
        places = [cohorts.index(row.cohort) + (position - (len(names) - 1) / 2) * width for row in own]
        axis.bar(places, [row.cpu_s for row in own], width * 0.9, label=name)
        limits = [(place, row.limit_s) for place, row in zip(places, own, strict=True) if row.limit_s]
        for place, limit_s in limits:
            axis.hlines(limit_s, place - width / 2, place + width / 2, colors="black", linewidth=1.5)
    axis.set_yscale("log")
    axis.set_xticks(range(len(cohorts)), [f"{cohort} institutions" for cohort in cohorts])
    axis.set_ylabel("CPU seconds (line: bare AES-CTR + add)")


def _family(row: Row) -> str:
    """What stands for the same thing in cohorts of all sizes."""
    if not row.scheme.startswith("Flower"):
        return row.scheme
    return "Flower SecAgg+, all others" if row.neighbours > FLOWER_NEIGHBOURS else "Flower SecAgg+, up to 10 neighbours"
