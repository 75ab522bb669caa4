"""Pictures of a study: who has what, curves over the training, samples after each round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fedddpm.evaluation.optional_packages import require_extra
from fedddpm.experiment.report.drawing import empty_figure, paleness, save_figure, save_image, style
from fedddpm.experiment.report.groups import Group, grouped, rounds_by_epochs, short
from fedddpm.experiment.report.table import INSECURE
from fedddpm.experiment.results import InstitutionRecord, RoundRecord, StudyResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WRITTEN_CELLS = 400  # more numbers than this nobody reads
_SHOWN_ROUNDS = 6


def split_picture(members: Sequence[InstitutionRecord], path: Path) -> Path:
    """Images of each class and institution as a table of shades with their sizes beside it; one bar without labels.

    Raises:
        ConfigError: matplotlib is missing. CheckpointError: the picture cannot be written.
    """
    classes = max((len(member.labels) for member in members), default=0)
    figure = empty_figure(5.0 + 0.45 * classes, 1.7 + 0.36 * len(members))
    table, sizes = figure.subplots(1, 2, width_ratios=[max(1, classes), 4]) if classes else (None, figure.subplots())
    if table is not None:
        _shade(table, members, classes)
    places = np.arange(len(members))
    totals = [member.images for member in members]
    bars = sizes.barh(places, totals, color="#0072B2", height=0.7)
    sizes.bar_label(bars, labels=[f"{total:,}" for total in totals], padding=4)
    sizes.set(xlabel="images in all", xlim=(0, max([*totals, 1]) * 1.3), ylim=(len(members) - 0.5, -0.5))
    sizes.set_yticks(places, [member.name for member in members] if table is None else [])
    sizes.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def _shade(axes: Axes, members: Sequence[InstitutionRecord], classes: int) -> None:
    counts = np.zeros((len(members), classes), dtype=np.int64)
    for row, member in enumerate(members):
        counts[row, : len(member.labels)] = member.labels
    axes.imshow(counts, cmap="Blues", aspect="auto", vmin=0, vmax=max(1, int(counts.max())) * 1.25)
    axes.set_xticks(range(classes) if classes <= 20 else range(0, classes, max(1, classes // 10)))
    axes.set_yticks(range(len(members)), [member.name for member in members])
    axes.set(xlabel="class (number of images in the cells)")
    axes.tick_params(length=0)
    if counts.size <= _WRITTEN_CELLS:
        for (row, column), count in np.ndenumerate(counts):
            dark = count > 0.6 * counts.max()
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color="w" if dark else "k")


def curves(results: StudyResults, folder: Path) -> list[Path]:
    """Held-out loss and, where measured, the distance after each round: one picture a (K, split, network).

    One line a method, the mean over its seeds, in a band from the lowest to the highest seed. Returns what there is to
    show, which is nothing before the first round.

    Raises:
        ConfigError: matplotlib is missing. CheckpointError: a picture cannot be written.
    """
    groups = grouped(results)
    panels: dict[tuple[int, str, str], list[Group]] = {}
    for group in groups:
        run = group.first
        if not group.centralised:
            panels.setdefault((run.institutions, run.split, run.network), []).append(group)
    if not panels:  # the baseline alone
        panels = {(1, "all", group.first.network): [group] for group in groups}
    written = []
    for (k, split, network), members in panels.items():
        baselines = [group for group in groups if group.centralised and group.first.network == network]
        drawn = [*members, *(group for group in baselines if group not in members)]
        title = f"K = {k}, {split}, network {network}" if k > 1 else f"network {network}"
        ending = f"-k{k}-{split}-{network}.png"
        loss = _draw(drawn, title, folder / f"loss{ending}", distance=False)
        written += [path for path in (loss, _draw(drawn, title, folder / f"distance{ending}", distance=True)) if path]
    return written


def _draw(groups: Sequence[Group], title: str, path: Path, *, distance: bool) -> Path | None:
    values = [rounds_by_epochs(group, _distance if distance else _loss) for group in groups]
    if not any(values):
        return None
    figure = empty_figure(7.5, 4.4)
    axes = figure.subplots()
    rings = [group.first.bits for group in groups if not group.centralised]
    for group, by_epochs in zip(groups, values, strict=True):
        if by_epochs:
            _line(axes, group, by_epochs, rings)
    axes.set(title=title, ylabel="held-out loss (Huber)")
    if distance:
        _floor(axes, groups)
    _mark_epochs(axes, sorted({epochs for by_epochs in values for epochs in by_epochs}), groups)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return save_figure(figure, path)


def _mark_epochs(axes: Axes, epochs: Sequence[int], groups: Sequence[Group]) -> None:
    """Ticks where rounds end, ten at most."""
    local = next((record.epochs // (record.round + 1) for g in groups for run in g.runs for record in run.rounds), 1)
    axes.set_xticks(epochs[:: -(-len(epochs) // 10)])
    axes.set_xlabel("epochs" if local == 1 else f"epochs ({local} a round)")


def _loss(record: RoundRecord) -> float | None:
    return record.loss


def _distance(record: RoundRecord) -> float | None:
    return record.measured.pooled.distance if record.measured else None


def _line(axes: Axes, group: Group, by_epochs: dict[int, list[float]], rings: Sequence[int]) -> None:
    run, look = group.first, style(group.first.method)
    insecure = f" ({INSECURE})" if group.aggregation == INSECURE else ""
    several = not group.centralised and len(set(rings)) > 1
    ring = f", {group.bits} bits" if several else ""
    epochs = list(by_epochs)
    means = [float(np.mean(seeds)) for seeds in by_epochs.values()]
    alpha = paleness(run.bits, rings) if several else 1.0
    axes.plot(epochs, means, label=run.method + ring + insecure, alpha=alpha, **look)
    if any(len(seeds) > 1 for seeds in by_epochs.values()):
        lows, highs = zip(*((min(seeds), max(seeds)) for seeds in by_epochs.values()), strict=True)
        axes.fill_between(epochs, lows, highs, color=look["color"], alpha=0.15, linewidth=0)


def _floor(axes: Axes, groups: Sequence[Group]) -> None:
    scores = [
        record.measured.pooled for g in groups for run in g.runs for record in run.rounds if record.measured is not None
    ]
    floor = float(np.mean([one.floor for one in scores]))
    axes.axhline(floor, color="#000000", linewidth=1, linestyle=(0, (1, 3)), label=f"real images ({short(floor)})")
    axes.set_ylabel(f"{scores[0].label}, {scores[0].net}")
    lowest, highest = (pick(one.distance for one in scores) for pick in (min, max))
    if lowest > 0 and highest > 10 * max(floor, lowest):  # else the last rounds could not be told apart
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=max(0.8 * floor, 0.2 * lowest))
    else:
        axes.set_ylim(bottom=0)


def rounds_strip(grids: Sequence[tuple[str, Path]], path: Path) -> Path | None:
    """Grids of samples side by side under their captions: at most six, the first and the last among them.

    Files that are missing or damaged are left out; None if that leaves nothing.

    Raises:
        ConfigError: matplotlib, whose font is used, is missing. CheckpointError: the picture cannot be written.
    """
    require_extra()
    places = np.unique(np.linspace(0, max(0, len(grids) - 1), min(len(grids), _SHOWN_ROUNDS)).round().astype(int))
    tiles = [(grids[i][0], tile) for i in places if (tile := _open(grids[i][1])) is not None]
    if not tiles:
        return None
    return save_image(_side_by_side(tiles), path)


def _side_by_side(tiles: Sequence[tuple[str, Image.Image]], gap: int = 16, head: int = 30) -> Image.Image:
    import matplotlib

    side = max(max(tile.size) for _, tile in tiles)
    scale = max(1, 300 // side)  # whole pixels: nothing is smoothed that the network did not draw
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 18)
    width, height = max(tile.width for _, tile in tiles) * scale, max(tile.height for _, tile in tiles) * scale
    sheet = Image.new("RGB", (len(tiles) * (width + gap) + gap, height + head + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (caption, tile) in enumerate(tiles):
        left = gap + place * (width + gap)
        pen.text((left, 5), caption, fill="black", font=font)
        larger = tile.resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST)
        sheet.paste(larger, (left, head))
    return sheet


def _open(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None
