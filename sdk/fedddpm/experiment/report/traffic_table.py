"""What a method moves over the wire, against FULL."""

from __future__ import annotations

from fedddpm.experiment.report.groups import Group, grouped
from fedddpm.experiment.report.table import NONE, Column, Table
from fedddpm.experiment.results import RoundRecord, RunRecord, StudyResults
from fedddpm.transport.traffic import fedavg_bytes, less_than_fedavg

BYTE_COLUMNS = (Column("MB up", True), Column("MB down", True), Column("Less than FedAvg", True))


def traffic_table(results: StudyResults) -> Table:
    """N in millions of parameters, up and down over the whole run, and what it saves against FULL."""
    groups = [group for group in grouped(results) if not group.centralised]
    rows: dict[tuple[str, ...], None] = {}  # the split changes nothing
    for group in groups:
        run, saved = group.first, cut(results, group)
        setting = (run.method, str(run.institutions), run.network, group.bits, group.aggregation)
        n = f"{run.planned_traffic / 1e6:.2f}" if run.planned_traffic else NONE
        parameters = (n, NONE if saved is None or run.method == "FULL" else f"{saved:.1f} %")
        rows[(*setting, *parameters, *run_bytes_cells(run))] = None
    setting_columns = (
        Column("Method"),
        Column("K", True),
        Column("Network"),
        Column("Bits", True),
        Column("Aggregation"),
    )
    columns = (*setting_columns, Column("N (10⁶ parameters)", True), Column("Saved against FULL", True), *BYTE_COLUMNS)
    notes = [
        "N counts parameters up and down over all planned rounds, as the paper does: theta_0 at first contact, without"
        " the download of the final model.",
        "MB are those of one institution in one round, on average over the rounds so far: packed words as they travel."
        " FedAvg is naive: the whole network up and down in float32 in each round. The last column counts as N does,"
        " but theta_0 follows from its seed and is not downloaded.",
    ]
    if any(group.first.method == "USPLIT" and group.first.institutions % 2 for group in groups):
        notes.append("With USPLIT and an odd K, N depends on the draws of the odd institution's part.")
    return Table("Traffic", columns, tuple(rows), tuple(notes)).without_constant("K", "Network", "Bits")


def cut(results: StudyResults, group: Group) -> float | None:
    """Per cent saved against FULL of the same K, network and rounds; None where that is not known.

    FULL is taken from the study where it has such a run; else it is 2 K R P (the paper's N), with R as set.
    """
    run = group.first
    rounds = results.settings.get("rounds")
    full = [
        other.planned_traffic
        for other in results.runs
        if (other.method, other.institutions, other.network) == ("FULL", run.institutions, run.network)
    ]
    if not full and isinstance(rounds, int):
        full = [2 * run.institutions * rounds * sum(run.parameters.values())]
    if not run.planned_traffic or not full or not full[0]:
        return None
    return 100 * (1 - run.planned_traffic / full[0])


def run_bytes_cells(run: RunRecord) -> tuple[str, str, str]:
    """Cells of :data:`BYTE_COLUMNS` for one institution and round, on average; dashes where nothing is recorded."""
    if not any(record.payload_up for record in run.rounds):
        return NONE, NONE, NONE
    up, down = (sum(sizes) for sizes in zip(*((r.payload_up, r.payload_down) for r in run.rounds), strict=True))
    count = run.institutions * len(run.rounds)
    final = run.rounds[-1].payload_down  # of the last model, which nobody trains on
    fedavg = count * fedavg_bytes(sum(run.parameters.values()))
    return _megabytes(up / count), _megabytes(down / count), f"{less_than_fedavg(up + down - final, fedavg):.1f} %"


def round_bytes_cells(run: RunRecord, record: RoundRecord) -> tuple[str, str, str]:
    """Cells of :data:`BYTE_COLUMNS` for one institution in one round; dashes where nothing is recorded."""
    if not record.payload_up:
        return NONE, NONE, NONE
    count = run.institutions
    moved, fedavg = record.payload_up + record.payload_down, count * fedavg_bytes(sum(run.parameters.values()))
    less = f"{less_than_fedavg(moved, fedavg):.1f} %"
    return _megabytes(record.payload_up / count), _megabytes(record.payload_down / count), less


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.2f}"
