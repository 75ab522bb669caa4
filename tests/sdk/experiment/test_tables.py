"""What the tables of a study say, beside which numbers of the paper."""

import hashlib
import io

import pytest
from rich.console import Console
from tests.sdk.support.studies import LEVELS, P, U, made_run, made_study, planned

from fedddpm.experiment.design.traffic_plan import paper_parameters
from fedddpm.experiment.report import paper
from fedddpm.experiment.report.groups import grouped, mean_and_spread, short
from fedddpm.experiment.report.paper_comparison import comparison_table
from fedddpm.experiment.report.table import INSECURE, Column, Table, as_markdown
from fedddpm.experiment.report.tables import (
    all_tables,
    clients_table,
    institutions_table,
    print_tables,
    rounds_table,
    scores_tables,
)
from fedddpm.experiment.report.trade_off import points, trade_off_table
from fedddpm.experiment.report.traffic_table import traffic_table
from fedddpm.experiment.results import StudyResults
from fedddpm.model.partition import manifest
from fedddpm.model.unet import UNet
from fedddpm_protocol.agreement.methods import MODEL_PARTS, Method
from fedddpm_protocol.agreement.model_layout import coordinates

PAPERS = [method for method in Method if method is not Method.TURN]


def column(table: Table, title: str) -> list[str]:
    place = [one.title for one in table.columns].index(title)
    return [row[place] for row in table.rows]


@pytest.mark.parametrize("k", [2, 5, 10])
@pytest.mark.parametrize("method", PAPERS)
def test_the_papers_traffic_is_the_plan_of_this_package(method: Method, k: int) -> None:
    network = UNet(28, 1, "paper")
    sizes = {part: coordinates(manifest(network, (part,))) for part in MODEL_PARTS}
    members = [f"site-{i}" for i in range(k)]
    specs = [hashlib.sha256(bytes([r])).digest() for r in range(paper.ROUNDS)]
    n = paper_parameters(method, sizes, members, specs) / 1e6
    printed = paper.published_traffic(method, k)
    assert printed is not None
    if method is Method.USPLIT and k % 2:  # the odd institution's coins
        assert 340.35 <= printed.millions <= 348.81
        assert 340.35 <= round(n, 2) <= 348.81
    else:
        assert n == pytest.approx(printed.millions, abs=0.0101)  # one cell is rounded before it is multiplied
    full = paper.published_traffic("FULL", k)
    assert full is not None
    if printed.cut is not None:
        assert 100 * (1 - printed.millions / full.millions) == pytest.approx(printed.cut, abs=0.06)


def test_the_papers_fids() -> None:
    assert str(paper.published("FULL", 5, "iid")) == "39 ± 4"
    assert str(paper.published("UDEC", 10, "quantity-skew")) == "147"
    assert str(paper.published("centralised", 1, "iid", 15)) == "43 ± 1"
    assert str(paper.published("FULL", 10, "iid", 1)) == "147"
    assert paper.published("FULL", 6, "iid") is None
    assert paper.published("UDEC", 5, "iid", 1) is None
    assert paper.published_traffic("FULL", 6) is None
    for split in (paper.IID, paper.LABEL_SKEW, paper.QUANTITY_SKEW):
        for method in PAPERS:
            assert all(paper.published(method, k, split) for k in (2, 5, 10))


def test_numbers_have_three_digits_and_a_spread_over_the_seeds() -> None:
    assert [short(value) for value in (0.00312, 3.8, 43.21, 147.4, 1200.0, 0.0)] == [
        "0.00312", "3.80", "43.2", "147", "1200", "0",
    ]  # fmt: skip
    assert mean_and_spread([]) == "-"
    assert mean_and_spread([43.21]) == "43.2"
    assert mean_and_spread([40.0, 42.0]) == "41.0 ± 1.4"


def test_seeds_are_put_together_and_nothing_else() -> None:
    study = made_study(
        *(made_run("UDEC", seed, k=10) for seed in (1, 0)),
        made_run("FULL", k=5),
        made_run("FULL", k=5, aggregation="plain"),
        made_run("centralised"),
    )
    groups = grouped(study)
    assert [(g.first.method, g.first.institutions, len(g.runs), g.aggregation) for g in groups] == [
        ("centralised", 1, 1, "none"),
        ("FULL", 5, 1, INSECURE),
        ("FULL", 5, 1, "secure"),
        ("UDEC", 10, 2, "secure"),
    ]


def test_a_baseline_that_was_measured_twice_counts_once() -> None:
    run = made_run("centralised", rounds=3)  # 15 epochs in all are the paper's 15 epochs, too
    table = scores_tables(made_study(run))[0]
    assert column(table, "FID (N = 1000)") == ["35.0"]


def test_final_scores_carry_their_number_of_images_and_the_floor() -> None:
    runs = [made_run(method, seed) for method in LEVELS for seed in (0, 2)]
    tables = scores_tables(made_study(*runs))
    assert [table.columns[-5].title for table in tables] == ["FID (N = 1000)", "FID (N = 5000)"]
    first = tables[0]
    assert column(first, "Real images (N = 1000)") == ["23.2"] * 6
    assert column(first, "Method") == ["centralised", "centralised", "FULL", "USPLIT", "ULATDEC", "UDEC"]
    assert column(first, "Epochs") == ["15", "75", "75", "75", "75", "75"]
    assert column(first, "FID (N = 1000)")[1:3] == ["36.0 ± 1.4", "41.0 ± 1.4"]
    assert "In all rows: Network paper, Seeds 2." in first.notes
    clients = clients_table(made_study(*runs))
    assert [column(clients, title) for title in ("Method", "Lowest", "Highest")] == [
        ["ULATDEC", "UDEC"],
        ["55.0", "60.0"],
        ["69.0", "74.0"],
    ]
    assert set(column(clients, "Metric")) == {"FID (N = 500)"}


def test_traffic_is_set_against_full_of_the_same_k() -> None:
    study = made_study(*(made_run(method, k=k) for method in ("FULL", "ULATDEC", "UDEC") for k in (5, 10)))
    table = traffic_table(study)
    assert column(table, "N (10⁶ parameters)") == ["449.45", "263.75", "118.84", "898.89", "527.51", "237.69"]
    assert column(table, "Saved against FULL") == ["-", "41.3 %", "73.6 %"] * 2
    alone = traffic_table(made_study(made_run("UDEC", rounds=3), rounds=3))  # FULL was not run: 2 K R P
    assert column(alone, "Saved against FULL") == [f"{100 * (1 - planned('UDEC', 5, 3) / (30 * P)):.1f} %"]


def test_bytes_are_set_against_naive_fedavg() -> None:
    """16 bits in the first round, 8 in 14: FULL moves 2 * 16 - 1 bytes a parameter, FedAvg 15 * 8."""
    runs = [made_run(method, k=k) for method in ("FULL", "UDEC") for k in (5, 10)]
    table = traffic_table(made_study(*runs))
    assert column(table, "MB up") == column(table, "MB down") == ["3.20", "0.76"] * 2
    assert column(table, "Less than FedAvg") == ["74.2 %", "93.8 %"] * 2
    first, second = rounds_table(runs[0]).rows[:2]
    place = [one.title for one in rounds_table(runs[0]).columns].index("MB up")
    assert first[place : place + 3] == ("5.99", "5.99", "50.0 %")
    assert second[place : place + 3] == ("3.00", "3.00", "75.0 %")
    begun = traffic_table(made_study(made_run("FULL", done=1)))  # no final model yet, and no second round
    assert column(begun, "Less than FedAvg") == ["75.0 %"]


def test_a_study_that_counted_no_bytes_has_none() -> None:
    run = made_run("UDEC", done=1)
    silent = run.model_copy(update={"rounds": [r.model_copy(update={"payload_up": 0}) for r in run.rounds]})
    assert column(traffic_table(made_study(silent)), "Less than FedAvg") == ["-"]
    assert rounds_table(silent).rows[0][-6:-3] == ("-", "-", "-")
    assert rounds_table(made_run("centralised", done=1)).rows[0][-6:-3] == ("-", "-", "-")


def test_the_paper_stands_beside_what_it_ran_and_nothing_else() -> None:
    runs = [made_run("FULL", savings=("rescaled", "clipped")), made_run("UDEC", k=6), made_run("centralised")]
    table = comparison_table(made_study(*runs))
    assert column(table, "Method") == ["centralised"] * 3 + ["FULL"] * 4
    assert column(table, "FID in the paper") == ["43 ± 1", "-", "-"] + ["39 ± 4"] * 4
    assert set(column(table, "Real images")) == {"23.2"}
    assert set(column(table, "Saving")) == {"rescaled", "clipped"}
    assert not comparison_table(made_study(*runs, data="celeba"))
    one_epoch = comparison_table(made_study(made_run("FULL", epochs=1)))
    assert set(column(one_epoch, "FID in the paper")) == {"105"}
    skewed = comparison_table(made_study(made_run("UDEC", split="label-skew", done=2)))
    assert column(skewed, "FID here") == ["-"]
    assert column(skewed, "N in the paper (10⁶)") == ["118.85"]


def test_other_settings_than_the_papers_are_confessed() -> None:
    def said(**settings: object) -> str:
        return " ".join(comparison_table(made_study(made_run(), **settings)).notes)

    assert "did not run the paper's settings" not in said(sampler="ancestral", subset=None)
    assert "training images 3000 instead of all" in said(subset=3000)
    assert "network paper, fast instead of paper" in said(networks=["paper", "fast"])


@pytest.mark.parametrize("method", ["FULL", "UDEC"])
def test_a_plain_average_is_marked_in_every_table(method: str) -> None:
    study = made_study(made_run(method, aggregation="plain"))
    tables = all_tables(study)
    assert len(tables) >= 6
    for table in tables:
        assert set(column(table, "Aggregation")) == {INSECURE}, table.title
        assert f"**{INSECURE}**" in as_markdown(table)
    for terminal in (True, False):
        assert printed(study, width=60, terminal=terminal).count("INSECURE") >= len(tables)


def printed(study: StudyResults, width: int, terminal: bool) -> str:
    file = io.StringIO()
    print_tables(Console(file=file, width=width, force_terminal=terminal, color_system=None), study)
    return " ".join(file.getvalue().split())


def test_a_narrow_terminal_cuts_nothing_off() -> None:
    text = printed(made_study(made_run("UDEC", split="quantity-skew"), made_run("centralised")), 60, terminal=True)
    assert "…" not in text
    assert "Method UDEC, K 5, Split quantity-skew, Aggregation secure, Epochs 75, FID (N = 1000) 60.0, Real" in text
    assert "FID in the paper 139, N here (10⁶) 118.84" in text


def test_institutions_are_those_of_the_lowest_seed() -> None:
    table = institutions_table(made_study(made_run("UDEC", 1), made_run("FULL", 1), made_run("FULL", 0)))
    assert len(table.rows) == 5
    assert "Seed 0" in table.notes[0]


def test_a_study_that_has_hardly_begun_has_tables() -> None:
    empty = StudyResults(name="x", command="x", settings={}, machine="", versions={})
    assert all_tables(empty) == []
    titles = [table.title for table in all_tables(made_study(made_run(done=0)))]
    assert titles == ["Traffic", "Beside the paper (arXiv 2406.12575)", "Runs", "Institutions"]


def test_markdown_keeps_strange_text_in_its_cell() -> None:
    table = Table("T", (Column("a"), Column("b", True)), (("x | y\n<script>", "1"),), ("*note*",))
    lines = as_markdown(table).splitlines()
    assert lines[2:5] == ["| a | b |", "| --- | ---: |", "| x \\| y \\<script\\> | 1 |"]
    assert "\\*note\\*" in lines


def test_rings_stand_side_by_side_with_loss_distance_and_bytes() -> None:
    runs = [made_run("UDEC", seed, bits=bits) for bits in (4, 16) for seed in (0, 2)]
    study = made_study(*runs, made_run("centralised"), made_run("FULL", bits=4, done=3))
    assert [group.bits for group in grouped(study)] == ["-", "4", "16", "4"]
    table = trade_off_table(study)
    assert column(table, "Method") == ["centralised", "UDEC", "UDEC"]  # FULL is not finished
    assert column(table, "Bits") == ["-", "16", "4"]
    assert column(table, "FID (N = 5000)") == ["35.0", "61.0 ± 1.4", "61.0 ± 1.4"]
    assert column(table, "Sums made again") == ["-", "0", "0"]
    sixteen, four = 5 * 2 * U * (15 + 14), 5 * U * (2 * 2 + 0.5 * (14 + 13))  # the first round has 16 bits
    assert column(table, "MB in all") == ["-", f"{sixteen / 1e6:.1f}", f"{four / 1e6:.1f}"]
    fedavg = 5 * 15 * 8 * P
    assert column(table, "Less than FedAvg")[1:] == [f"{100 - 100 * m / fedavg:.1f} %" for m in (sixteen, four)]
    assert "Bits 4" in " ".join(trade_off_table(made_study(made_run("UDEC", bits=4))).notes)
    assert not trade_off_table(made_study(made_run("UDEC", done=2)))


def test_what_not_all_runs_were_measured_by_is_not_compared() -> None:
    scored, bare = made_run("UDEC", bits=8), made_run("FULL", bits=8).model_copy(update={"final": [], "rounds": []})
    assert points(made_study(scored))[0].scores
    assert not any(point.scores for point in points(made_study(scored, bare)))
    last = made_run("FULL", bits=8).model_copy(update={"final": []})
    (point,) = points(made_study(last))
    assert [one.label for one in point.scores] == ["FD (N = 240)"]  # of the last round
