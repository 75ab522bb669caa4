"""Tables and picture of encoding_accuracy.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.encoding.measuring import Change, Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROWS = ("sent as", "NMSE", "target", "own dithers", "per tensor", "room", "wrapped")
CHANGES = ("next round", "bits", "NMSE", "room", "full", "wrapped", "the sum is")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito (2008)
_WAYS = (("nmse", "-", "o", "ring"), ("own_dithers", ":", "", "own dithers"), ("per_tensor", "--", "s", "per tensor"))


def row_cells(row: Row) -> tuple[str, ...]:
    way = f"ring of {row.bits} bits" if row.way == "ring" else row.way
    target = "" if row.target is None else f"{row.target:.0e} {'met' if row.met else 'MISSED'}"
    room = "" if row.room is None else f"{row.room:.2f}"
    wrapped = "" if row.wrapped is None else f"{row.wrapped:,}{'' if row.accepted else ' (not used)'}"
    per_tensor = "no room" if row.way == "ring" and row.per_tensor is None else _number(row.per_tensor)
    return way, _number(row.nmse), target, _number(row.own_dithers), per_tensor, room, wrapped


def change_cells(change: Change) -> tuple[str, ...]:
    verdict = "used" if change.accepted else "WrappedSumError"
    full = f"{100 * change.fullness:.0f} %"
    number, room = _number(change.nmse), f"{change.room:.2f}"
    return change.what, str(change.bits), number, room, full, f"{change.wrapped:,}", verdict


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Error against bits, one panel for each kind of update, one colour for each cohort."""
    kinds, cohorts = list(dict.fromkeys(row.updates for row in rows)), sorted({row.members for row in rows})
    figure = Figure(figsize=(5 * len(kinds) + 1.5, 4.8), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        for colour, members in zip(_COLOURS, cohorts, strict=False):
            _lines(panel, [row for row in rows if (row.updates, row.members) == (kind, members)], colour)
        panel.set(title=f"{kind} updates", xlabel="bits a coordinate", yscale="log")
        panel.set_xticks(sorted({row.bits for row in rows}))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("squared error of the mean over its squared norm")
    panels[-1].legend(fontsize="small", bbox_to_anchor=(1.02, 1), loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144)


def _lines(panel: Axes, rows: Sequence[Row], colour: str) -> None:
    rings = [row for row in rows if row.way == "ring"]
    for field, dashes, marker, label in _WAYS:
        points = [(row.bits, getattr(row, field)) for row in rings if getattr(row, field) is not None]
        if points:
            text = f"{label}, n = {rows[0].members}"
            panel.plot(*zip(*points, strict=True), dashes, color=colour, marker=marker, markersize=4, label=text)
    for row in rows:
        if row.way != "ring":
            marker = {"float32": "*", "bfloat16": "D"}[row.way]
            panel.plot(row.bits, row.nmse, marker, color=colour, label=f"{row.way}, n = {row.members}")
