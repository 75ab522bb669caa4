"""What ``fedddpm-aggregator rounds`` prints for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from rich import box, filesize
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedddpm_aggregator.service.history.run_report import RunReport
from fedddpm_aggregator.service.history.session_lines import SessionLine
from fedddpm_aggregator.service.history.traffic import RoundTraffic
from fedddpm_protocol.agreement.methods import reports_losses
from fedddpm_protocol.agreement.spec import SUM_FIELDS, WEIGHT_UNITS
from fedddpm_protocol.encoding.losses import mean_losses
from fedddpm_protocol.untrusted.plain_text import plain, plain_text

WIDTH_WITHOUT_TERMINAL = 160  # of a pipe or a file, where nobody tells one


class PlainConsole(Console):
    """Prints texts as they are: no markup in them, no emoji, no highlights, and no control characters.

    Every text that is printed or stands in a table comes by ``render_str``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """One text, of one line or several."""
        return super().render_str(plain_text(text), **options)


def console() -> PlainConsole:
    """Standard output at the width of the terminal, of ``COLUMNS``, or wide enough for a file."""
    told = sys.stdout.isatty() or "COLUMNS" in os.environ
    return PlainConsole(width=None if told else WIDTH_WITHOUT_TERMINAL)


def print_rounds(report: RunReport, out: Console) -> None:
    """Sessions, what the published rounds moved, why sessions failed or wait, who spoiled them, and what
    people should look at.

    Readable from 80 columns on.
    """
    out.print(rounds_table(report.lines))
    if report.traffic:
        out.print(traffic_table(report.traffic))
    for line in report.lines:
        place = f"round {line.round + 1}, attempt {line.attempt + 1}, {line.part}"
        for words in (line.reason, *line.verdicts):
            if words:
                out.print(f"{place}: {plain(words)}", soft_wrap=True)
    for alarm in report.alarms:
        out.print(f"alarm after round {alarm.round + 1}: {plain(alarm.text)}", soft_wrap=True)
    if report.suspicion is not None:
        out.print(plain(report.suspicion.happened), soft_wrap=True)
    for conduct in report.conduct:
        out.print(f"{conduct.member} {plain(conduct.happened)}. {plain(conduct.to_do)}", soft_wrap=True)


def rounds_table(lines: Sequence[SessionLine]) -> Table:
    """One row a session; losses are means over the survivors, rounds and attempts count from 1."""
    title = f"run {lines[0].run} ({lines[0].method})" if lines else "no round yet"
    table = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    headings = ("round", "attempt", "part", "clip\nnorm", "phase", "survivors", "weight\nsum", "loss\nbefore", "after")
    for heading in headings:
        table.add_column(heading, no_wrap=heading != "survivors")
    for line in lines:
        table.add_row(*_cells(line))
    return table


def _cells(line: SessionLine) -> tuple[str, ...]:
    sums = ("", "", "")
    if len(line.sums) == len(SUM_FIELDS) and line.survivors:
        losses = [f"{loss:.4f}" for loss in mean_losses(line.sums, len(line.survivors))]
        before, after = losses if reports_losses(line.part) else ("", "")
        sums = (f"{line.sums[0] / WEIGHT_UNITS:.3f}", before, after)
    names = f": {', '.join(line.survivors)}" if line.survivors else ""
    survivors = f"{len(line.survivors)} of {len(line.cohort)}{names}" if line.cohort else f"{len(line.joined)} joined"
    place = (str(line.round + 1), str(line.attempt + 1), line.part, f"{line.clip_norm:.3g}")
    return (*place, line.phase, survivors, *sums)


def traffic_table(rounds: Sequence[RoundTraffic]) -> Table:
    """Payload of all members together, a row a published round, and of the run so far.

    Naive FedAvg moves the whole network in float32, down and up.
    """
    table = Table(
        title="payload of all members together",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for heading in ("round", "ring", "up", "down", "naive FedAvg", "saved"):
        table.add_column(heading, justify="left" if heading in ("round", "ring") else "right")
    for traffic in rounds:
        ring = f"{', '.join(map(str, traffic.bits))} bits"
        table.add_row(str(traffic.round + 1), ring, *_traffic_cells(traffic))
    if len(rounds) > 1:
        sums = (sum(getattr(traffic, name) for traffic in rounds) for name in ("up", "down", "float32"))
        table.add_row("all", "", *_traffic_cells(RoundTraffic(len(rounds), (), *sums)))
    return table


def _traffic_cells(traffic: RoundTraffic) -> tuple[str, ...]:
    sizes = (filesize.decimal(size) for size in (traffic.up, traffic.down, traffic.float32))
    return (*sizes, f"{100 * traffic.saved:.1f} %")
