"""The picture of bytes against quality: one line a method, one point a ring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedddpm.experiment.report import paper
from fedddpm.experiment.report.drawing import empty_figure, save_figure, style
from fedddpm.experiment.report.groups import short
from fedddpm.experiment.report.paper_comparison import paper_split
from fedddpm.experiment.report.table import INSECURE
from fedddpm.experiment.report.trade_off import Point, points
from fedddpm.experiment.results import StudyResults
from fedddpm.transport.traffic import FLOAT_BYTES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trade_off_pictures(results: StudyResults, folder: Path) -> list[Path]:
    """Finished runs by what they moved and how good they became: one picture a (K, split, network).

    Returns what there is to show, which is nothing before a run with known bytes is finished.

    Raises:
        ConfigError: matplotlib is missing. CheckpointError: a picture cannot be written.
    """
    written = []
    for (k, split, network), members, baselines in _panels(points(results)):
        title = f"K = {k}, {split}, network {network}"
        written.append(_draw(members, baselines, title, folder / f"traffic-k{k}-{split}-{network}.png"))
    return written


def beside_paper(results: StudyResults, folder: Path) -> list[Path]:
    """Finished runs on Fashion-MNIST beside the paper's own points, bytes against FID; by (K, split, network).

    FIDs are of images saved as the paper's code saves them. Returns what there is to show: nothing where no run was
    measured so, or the paper has no such setting. Errors as :func:`trade_off_pictures`.
    """
    if results.settings.get("data") != paper.DATASET:
        return []
    found = [point for point in points(results, as_the_paper=True) if point.scores]
    written = []
    for (k, split, network), members, baselines in _panels(found):
        if any(_published(point) for point in members):
            title = f"K = {k}, {split}: ours ({network}) and {paper.SOURCE}"
            path = folder / f"paper-k{k}-{split}-{network}.png"
            written.append(_draw_beside_paper(members, baselines, title, path))
    return written


def _panels(found: Sequence[Point]) -> Iterator[tuple[tuple[int, str, str], list[Point], list[Point]]]:
    """By (K, split, network): what moved bytes, and the centralised runs of the network beside it."""
    panels: dict[tuple[int, str, str], list[Point]] = {}
    for point in found:
        run = point.group.first
        if point.moved:
            panels.setdefault((run.institutions, run.split, run.network), []).append(point)
    for panel, members in panels.items():
        yield panel, members, [one for one in found if one.group.centralised and one.group.first.network == panel[2]]


def _published(point: Point) -> paper.Published | None:
    run = point.group.first
    return paper.published(run.method, run.institutions, paper_split(run.split))


def _draw_beside_paper(members: Sequence[Point], baselines: Sequence[Point], title: str, path: Path) -> Path:
    figure = empty_figure(7.5, 4.6)
    axes = figure.subplots()
    for point in members:
        _line(axes, [point], scored=True)
        run = point.group.first
        theirs = _published(point)
        traffic = paper.published_traffic(run.method, run.institutions)
        if theirs is not None and traffic is not None:
            hollow = {**style(run.method), "markerfacecolor": "none", "markersize": 8, "linestyle": "none"}
            axes.plot([traffic.millions * FLOAT_BYTES], [theirs.fid], label=f"{run.method}, the paper's", **hollow)
    _baselines(axes, baselines, scored=True)
    best = paper.published(paper.CENTRALISED, 1, paper.IID, paper.CENTRALISED_EPOCHS)
    if best is not None:
        axes.axhline(best.fid, label="centralised, the paper's", color="#AAAAAA", linewidth=1, linestyle=(0, (5, 3)))
    _real_images(axes, members[0])
    axes.set_ylabel(f"{members[0].scores[0].label}, saved as the paper does")
    _finish(axes, title, fontsize=8)
    return save_figure(figure, path)


def _draw(members: Sequence[Point], baselines: Sequence[Point], title: str, path: Path) -> Path:
    figure = empty_figure(7.5, 4.6)
    axes = figure.subplots()
    scored = all(point.scores for point in members)
    lines: dict[tuple[str, str], list[Point]] = {}
    for point in members:
        lines.setdefault((point.group.first.method, point.group.aggregation), []).append(point)
    for line in lines.values():
        _line(axes, sorted(line, key=lambda point: point.moved), scored=scored)
    _baselines(axes, baselines, scored=scored)
    if scored:
        _real_images(axes, members[0])
        axes.set_ylabel(f"{members[0].scores[0].label}, {members[0].scores[0].net}")
    else:
        axes.set_ylabel("held-out loss (Huber)")
    _fedavg(axes, members[0].fedavg / 1e6)
    _finish(axes, title)
    return save_figure(figure, path)


def _baselines(axes: Axes, baselines: Sequence[Point], *, scored: bool) -> None:
    for baseline in baselines:
        axes.axhline(float(np.mean(_values(baseline, scored=scored))), label="centralised", **_plain_line(baseline))


def _real_images(axes: Axes, point: Point) -> None:
    axes.axhline(point.scores[0].floor, color="#000000", linewidth=1, linestyle=(0, (1, 3)), label="real images")
    axes.set_ylim(0, 1.12 * axes.get_ylim()[1])  # room for the numbers at the points


def _finish(axes: Axes, title: str, fontsize: int | None = None) -> None:
    axes.set(title=title, xscale="log", xlabel="MB of all institutions over the run, up and down (points: bits)")
    _mark_megabytes(axes)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=fontsize)


def _line(axes: Axes, line: Sequence[Point], *, scored: bool) -> None:
    group = line[0].group
    insecure = f" ({INSECURE})" if group.aggregation == INSECURE else ""
    megabytes = [point.moved / 1e6 for point in line]
    values = [_values(point, scored=scored) for point in line]
    means = [float(np.mean(seeds)) for seeds in values]
    axes.plot(megabytes, means, label=group.first.method + insecure, **style(group.first.method))
    if any(len(seeds) > 1 for seeds in values):
        lows, highs = ([pick(seeds) for seeds in values] for pick in (min, max))
        axes.fill_between(megabytes, lows, highs, color=style(group.first.method)["color"], alpha=0.15, linewidth=0)
    for point, x, y in zip(line, megabytes, means, strict=True):
        axes.annotate(point.group.bits, (x, y), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=9)


def _values(point: Point, *, scored: bool) -> Sequence[float]:
    return [scores.distance for scores in point.scores] if scored else point.losses


def _plain_line(point: Point) -> dict[str, Any]:
    return {name: value for name, value in style(point.group.first.method).items() if not name.startswith("marker")}


def _mark_megabytes(axes: Axes) -> None:
    """Ticks at 1, 2 and 5 of every power of ten, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def _fedavg(axes: Axes, megabytes: float) -> None:
    axes.axvline(megabytes, color="#555555", linewidth=1, linestyle=(0, (1, 3)))
    axes.annotate(
        f"naive FedAvg,\nfloat32: {short(megabytes)} MB",
        (megabytes, 0.02),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        xytext=(-4, 0),
        ha="right",
        fontsize=8,
        color="#555555",
    )
