"""The geometry of the loss curves: numbers in, places in a drawing out. A template makes SVG of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedddpm_aggregator.dashboard.rounds import Round

MOST_POINTS = 240  # of a curve; more rounds are thinned out
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 14.0, 12.0, 44.0  # around the plot


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One line, and where its single points are if there are few."""

    name: str
    kind: str  # before or after
    path: str  # of an SVG polyline
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """A drawing of ``width`` by ``height`` units."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def loss_chart(rounds: Sequence[Round], width: float, height: float) -> Chart | None:
    """Mean losses before and after local training by round; None with fewer than two rounds that have any."""
    known = [one for one in rounds if one.loss_before is not None and one.loss_after is not None]
    if len(known) < 2:
        return None
    step = -(-len(known) // MOST_POINTS)
    shown = [*known[:-1:step], known[-1]]
    values = [loss for one in shown for loss in (one.loss_before, one.loss_after) if loss is not None]
    low, high, y_labels = _nice(min(values), max(values))
    first, last = shown[0].index, shown[-1].index

    def x(index: int) -> float:
        return round(_LEFT + (width - _LEFT - _RIGHT) * (index - first) / (last - first), 1)

    def y(loss: float) -> float:
        return round(_TOP + (height - _TOP - _BOTTOM) * (high - loss) / (high - low), 1)

    def curve(name: str, kind: str, losses: Sequence[float | None]) -> Curve:
        places = tuple((x(one.index), y(loss)) for one, loss in zip(shown, losses, strict=True) if loss is not None)
        return Curve(name, kind, " ".join(f"{a},{b}" for a, b in places), places if len(places) <= 40 else ())

    return Chart(
        width=width,
        height=height,
        left=_LEFT,
        right=width - _RIGHT,
        top=_TOP,
        bottom=height - _BOTTOM,
        curves=(
            curve("before local training", "before", [one.loss_before for one in shown]),
            curve("after local training", "after", [one.loss_after for one in shown]),
        ),
        x_ticks=tuple(Tick(x(index), str(index + 1)) for index in _indices(first, last, int(width // 45))),
        y_ticks=tuple(Tick(y(loss), label) for loss, label in y_labels),
    )


def _nice(low: float, high: float) -> tuple[float, float, list[tuple[float, str]]]:
    """Round limits around [low, high], and about four labelled values in between."""
    spread = max(high - low, abs(high) * 0.02, 1e-6)
    raw = spread / 4
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw)
    bottom, top = math.floor(low / step), math.ceil(high / step)
    if bottom == top:
        top += 1
    digits = max(0, -math.floor(math.log10(step))) + (1 if f"{step / magnitude:.1f}" == "2.5" else 0)
    return bottom * step, top * step, [(n * step, f"{n * step:.{digits}f}") for n in range(bottom, top + 1)]


def _indices(first: int, last: int, most: int) -> list[int]:
    """At most ``most`` rounds to label, evenly spaced, the first among them."""
    step = max(1, -(-(last - first) // max(1, most - 1)))
    for rounder in (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000):
        if rounder >= step:
            step = rounder
            break
    return list(range(first, last + 1, step))
