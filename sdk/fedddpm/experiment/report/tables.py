"""The tables of a study: pure functions from its results to rows of text.

Whatever page shows them, a distance carries its sample count and the real-against-real floor, and an average that was
not secure is called so in every table.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.console import Console

from fedddpm.evaluation.scores import Scores
from fedddpm.experiment.report.groups import Group, Scored, decimals, final_scores, grouped, mean_and_spread, short
from fedddpm.experiment.report.paper_comparison import comparison_table
from fedddpm.experiment.report.table import NONE, Column, Table, show
from fedddpm.experiment.report.trade_off import trade_off_table
from fedddpm.experiment.report.traffic_table import BYTE_COLUMNS, round_bytes_cells, traffic_table
from fedddpm.experiment.results import RunRecord, StudyResults

_FILE_WIDTH = 160  # characters
_COMMON = ("K", "Split", "Network", "Bits")
_SETTING = (
    Column("Method"),
    Column("K", True),
    Column("Split"),
    Column("Network"),
    Column("Bits", True),
    Column("Aggregation"),
)


def all_tables(results: StudyResults) -> list[Table]:
    """Every table that has something to show, in reading order."""
    tables = (
        *scores_tables(results),
        clients_table(results),
        trade_off_table(results),
        traffic_table(results),
        comparison_table(results),
        runs_table(results),
        institutions_table(results),
    )
    return [table for table in tables if table]


def print_tables(console: Console, results: StudyResults) -> None:
    """Show the tables, and before them what a reader must know; into a file or a pipe as wide as they need."""
    if not console.is_terminal:
        console.width = max(console.width, _FILE_WIDTH)
    for note in results.notes:
        console.print(note, style="bold red" if note.startswith("INSECURE") else "bold", markup=False, highlight=False)
    for table in all_tables(results):
        show(table, console)


def scores_tables(results: StudyResults) -> list[Table]:
    """Final scores over the seeds: one table a net, sample count and way of saving, Inception first."""
    scored = final_scores(grouped(results))
    tables = []
    for place in sorted({_measurement(one) for one in scored}):
        rows = [one for one in scored if _measurement(one) == place]
        first = rows[0].pooled[0]
        columns = (
            *_SETTING,
            Column("Epochs", True),
            Column("Seeds", True),
            Column(first.label, True),
            Column(f"Real images (N = {first.n})", True),
            Column("KID", True),
            Column("Precision", True),
            Column("Recall", True),
        )
        title = f"Final scores: {first.label} by {first.net}, images saved {first.saving}"
        table = Table(title, columns, tuple(map(_score_row, rows)), _score_notes(first, rows))
        tables.append(table.without_constant("Split", "Network", "Bits", "Seeds"))
    return tables


def _measurement(one: Scored) -> tuple[bool, str, int, bool]:
    scores = one.pooled[0]
    return scores.metric != "FID", scores.net, scores.n, scores.saving != "rescaled"


def _score_notes(first: Scores, rows: Sequence[Scored]) -> tuple[str, ...]:
    notes = []
    if any(len(one.pooled) > 1 for one in rows):
        notes.append("± is the standard deviation over the seeds.")
    elif first.kid_std is not None:
        notes.append("± of the KID is the standard deviation over its subsets.")
    notes.append(
        f"Real images: the same distance for {first.n} real training images, saved properly: what a perfect generator"
        " would come to."
    )
    if first.metric == "FD":
        notes.append("FD is the Frechet distance in the features of a small classifier; it is no FID and not like one.")
    if first.saving == "clipped":
        notes.append("Clipped saving loses everything below mid-grey: only for comparison with the paper's code.")
    if any(one.per_client for one in rows):
        notes.append("Where institutions' networks differ, the images come from all of them in equal shares.")
    return tuple(notes)


def _score_row(one: Scored) -> tuple[str, ...]:
    pooled = one.pooled
    kids = [scores.kid for scores in pooled if scores.kid is not None]
    kid = mean_and_spread(kids)
    if len(kids) == 1 and pooled[0].kid_std is not None:
        kid = f"{kid} ± {pooled[0].kid_std:.{decimals(kids[0])}f}"
    return (
        *_setting(one.group),
        str(one.epochs),
        str(len(pooled)),
        mean_and_spread([scores.distance for scores in pooled]),
        short(statistics.fmean(scores.floor for scores in pooled)),
        kid,
        _share([scores.precision for scores in pooled]),
        _share([scores.recall for scores in pooled]),
    )


def _setting(group: Group) -> tuple[str, ...]:
    run = group.first
    return run.method, str(run.institutions), run.split, run.network, group.bits, group.aggregation


def _share(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.2f}" if known else NONE


def clients_table(results: StudyResults) -> Table:
    """Where the institutions' networks differ: the best, the mean and the worst of them."""
    columns = (
        *_SETTING,
        Column("Metric"),
        Column("Saving"),
        Column("Lowest", True),
        Column("Mean", True),
        Column("Highest", True),
        Column("Real images", True),
    )
    rows = []
    for one in sorted(final_scores(grouped(results)), key=_measurement):
        if one.per_client:
            values = [scores.distance for scores in one.per_client]
            distances = (min(values), statistics.fmean(values), max(values))
            floor = statistics.fmean(scores.floor for scores in one.per_client)
            labels = one.per_client[0].label, one.per_client[0].saving
            rows.append((*_setting(one.group), *labels, *map(short, (*distances, floor))))
    notes = ("Each institution's own images, over all institutions and seeds; real images at the same N.",)
    table = Table("Institution by institution", columns, tuple(dict.fromkeys(rows)), notes)
    return table.without_constant(*_COMMON, "Saving")


def runs_table(results: StudyResults) -> Table:
    """Every run, finished or not: rounds, held-out loss, seconds."""
    columns = (
        *_SETTING,
        Column("Seed", True),
        Column("Rounds", True),
        Column("Epochs", True),
        Column("Held-out loss: first round, last", True),
        Column("Aggregation a round (s)", True),
        Column("Time (min)", True),
        Column("State"),
    )
    rows = [(*_setting(group), *_run_row(run)) for group in grouped(results) for run in group.runs]
    notes = (
        "The held-out loss is the mean over the institutions of what everybody has at the round's end, on images that"
        " were not trained on. Rounds of the centralised baseline are as many epochs as a federated round has.",
    )
    return Table("Runs", columns, tuple(rows), notes).without_constant(*_COMMON)


def _run_row(run: RunRecord) -> tuple[str, ...]:
    rounds = run.rounds
    sums = [record.aggregation_s for record in rounds]
    return (
        str(run.seed),
        str(len(rounds)),
        str(rounds[-1].epochs if rounds else 0),
        f"{rounds[0].loss:.4f}, {rounds[-1].loss:.4f}" if rounds else NONE,
        NONE if run.aggregation == "none" or not sums else short(statistics.fmean(sums)),
        f"{run.seconds / 60:.1f}",
        "finished" if run.done else "NOT FINISHED",
    )


def rounds_table(run: RunRecord) -> Table:
    """One run, round by round."""
    columns = (
        Column("Round", True),
        Column("Epochs", True),
        Column("Training loss", True),
        Column("Held-out loss", True),
        Column("Institutions", True),
        Column("Aggregation (s)", True),
        Column("Training (s)", True),
        *BYTE_COLUMNS,
        Column("Metric"),
        Column("Distance", True),
        Column("Real images", True),
    )
    rows = []
    for record in run.rounds:
        scores = record.measured.pooled if record.measured else None
        rows.append(
            (
                str(record.round + 1),
                str(record.epochs),
                NONE if record.train_loss is None else f"{record.train_loss:.4f}",
                f"{record.loss:.4f}",
                str(record.survivors) if record.survivors else NONE,
                short(record.aggregation_s),
                short(record.training_s),
                *round_bytes_cells(run, record),
                scores.label if scores else NONE,
                short(scores.distance) if scores else NONE,
                short(scores.floor) if scores else NONE,
            )
        )
    group = Group((run,))
    ring = f", {run.bits} bits" if run.bits else ""
    title = f"{run.method}, K = {run.institutions}, {run.split}{ring}, seed {run.seed}: {group.aggregation}"
    return Table(title, columns, tuple(rows), _wrapped_notes(run))


def _wrapped_notes(run: RunRecord) -> tuple[str, ...]:
    again = [str(record.round + 1) for record in run.rounds if record.wrapped]
    return (f"A sum was too large for its ring and was not used in round {', '.join(again)}.",) if again else ()


def institutions_table(results: StudyResults) -> Table:
    """Who brought what, for the lowest seed of each split and number of institutions."""
    found: dict[tuple[int, str], list[RunRecord]] = {}
    for group in grouped(results):
        if not group.centralised:
            found.setdefault((group.first.institutions, group.first.split), []).append(group.first)
    rows = []
    for (k, split), runs in found.items():
        seed = min(run.seed for run in runs)
        kinds = ", ".join(dict.fromkeys(Group((run,)).aggregation for run in runs))
        for member in next(run for run in runs if run.seed == seed).members:
            present = [count for count in member.labels if count]
            spread = f"{len(present)} ({min(present)} to {max(present)} images each)" if present else NONE
            rows.append((str(k), split, str(seed), kinds, member.name, str(member.images), spread))
    split_columns = (Column("K", True), Column("Split"), Column("Seed", True), Column("Aggregation"))
    columns = (*split_columns, Column("Institution"), Column("Images", True), Column("Classes"))
    notes = ("Images held out for the loss are counted. Seeds that are not shown have splits of their own.",)
    return Table("Institutions", columns, tuple(rows), notes).without_constant("K", "Split", "Seed")
