"""What a method moves over the wire, against FULL."""

from __future__ import annotations

from fedddpm.experiment.groups import Group, grouped
from fedddpm.experiment.results import StudyResults
from fedddpm.experiment.table import NONE, Column, Table


def traffic_table(results: StudyResults) -> Table:
    """N in millions of parameters, up and down over the whole run, and what it saves against FULL."""
    groups = [group for group in grouped(results) if not group.centralised]
    rows: dict[tuple[str, ...], None] = {}  # the split changes nothing
    for group in groups:
        run, saved = group.first, cut(results, group)
        setting = (run.method, str(run.institutions), run.network, group.aggregation)
        n = f"{run.planned_traffic / 1e6:.2f}" if run.planned_traffic else NONE
        rows[(*setting, n, NONE if saved is None or run.method == "FULL" else f"{saved:.1f} %")] = None
    setting_columns = (Column("Method"), Column("K", True), Column("Network"), Column("Aggregation"))
    columns = (*setting_columns, Column("N (10⁶ parameters)", True), Column("Saved against FULL", True))
    notes = [
        "N counts parameters up and down over all planned rounds, as the paper does: theta_0 at first contact, without"
        " the download of the final model."
    ]
    if any(group.first.method == "USPLIT" and group.first.institutions % 2 for group in groups):
        notes.append("With USPLIT and an odd K, N depends on the draws of the odd institution's part.")
    return Table("Traffic", columns, tuple(rows), tuple(notes)).without_constant("K", "Network")


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
