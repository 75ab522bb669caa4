"""What ``fedddpm-aggregator rounds`` prints for people."""

from __future__ import annotations

import os
import sys

from rich import box
from rich.console import Console
from rich.table import Table

from fedddpm_aggregator.service.runs import SessionLine
from fedddpm_protocol.encoding import mean_losses
from fedddpm_protocol.methods import reports_losses
from fedddpm_protocol.spec import WEIGHT_UNITS

WIDTH_WITHOUT_TERMINAL = 160  # of a pipe or a file, where nobody tells one


def console() -> Console:
    """Standard output at the width of the terminal, of ``COLUMNS``, or wide enough for a file."""
    told = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if told else WIDTH_WITHOUT_TERMINAL)


def print_rounds(lines: list[SessionLine], out: Console) -> None:
    """The table, and below it why sessions failed or wait; readable from 80 columns on."""
    out.print(rounds_table(lines))
    for line in lines:
        if line.reason:
            place = f"round {line.round + 1}, attempt {line.attempt + 1}, {line.part}"
            out.print(f"{place}: {line.reason}", markup=False, highlight=False, soft_wrap=True)


def rounds_table(lines: list[SessionLine]) -> Table:
    """One row a session; losses are means over the survivors, rounds and attempts count from 1."""
    title = f"run {lines[0].run} ({lines[0].method})" if lines else "no round yet"
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in ("round", "attempt", "part", "phase", "survivors", "weight sum", "loss before", "after"):
        table.add_column(heading, no_wrap=heading not in ("survivors", "loss before"))
    for line in lines:
        table.add_row(*_cells(line))
    return table


def _cells(line: SessionLine) -> tuple[str, ...]:
    sums = ("", "", "")
    if line.sums:
        losses = [f"{loss:.4f}" for loss in mean_losses(line.sums, len(line.survivors))]
        before, after = losses if reports_losses(line.part) else ("", "")
        sums = (f"{line.sums[0] / WEIGHT_UNITS:.3f}", before, after)
    names = f": {', '.join(line.survivors)}" if line.survivors else ""
    survivors = f"{len(line.survivors)} of {len(line.cohort)}{names}" if line.cohort else f"{len(line.joined)} joined"
    return (str(line.round + 1), str(line.attempt + 1), line.part, line.phase, survivors, *sums)
