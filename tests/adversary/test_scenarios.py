"""Every attack of the documents, played on a small scale: it succeeds without its defence, and not with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from benchmarks.attack import scenario
from benchmarks.attack.images import CASES, PUBLIC, SECRET, Attack, Case, Setting, attack_all
from benchmarks.attack.scenario import SCENARIOS, Scenario
from benchmarks.attack.scores import shares_of
from benchmarks.attack.terms import ATTACKS, Row, measure
from benchmarks.dominance import Rounds, Way, spots, ways
from tests.adversary import test_inversion
from tests.adversary.support.inversion import TINY, pictures
from tests.e2e.attacks import test_blame, test_false_sums, test_opened_updates, test_spoilers
from tests.sdk.experiment import test_spoiled_rounds
from tests.support.repository import ROOT

from fedddpm.model.initialization import initial_network, seed_of
from fedddpm.model.unet import architecture_of

ONE_LEVEL = architecture_of(8, 1, "tiny", 16, (1,))
Played = Callable[[], None]


def of_terms(tried: Scenario) -> Row:
    """An attack by other terms, on three institutions."""
    shares, _ = shares_of(pictures(60, 0), 3, 8, 0)
    (row,) = measure(initial_network(ONE_LEVEL, seed_of(1)), shares, [tried])
    return row


def images_of(case: Case, architecture=ONE_LEVEL, images: int = 2, evaluations: int = 120) -> Attack:  # type: ignore[no-untyped-def]
    """An attack for the images of two institutions."""
    shares, others = shares_of(pictures(60, 0), 2, images, 0)
    setting = Setting(architecture, names=200, evaluations=evaluations, blind_evaluations=evaluations)
    (attack,) = attack_all(setting, shares, others, [case])
    return attack


def shares_in(way: Way, rounds: int) -> list[float]:
    """The share of the first institution in each mean."""
    held = [spots(count, seed) for seed, count in enumerate(way.images)]
    return [row.share for row in Rounds(way, held, 16, 1e-3).run(rounds)]


# --- what each comes to -----------------------------------------------------------------------------------------------


def honest() -> None:
    row = of_terms(scenario.HONEST)
    assert row.bound == row.cosine < 0.95


def refused(tried: Scenario, at_least: float) -> Played:
    def play() -> None:
        row = of_terms(tried)
        assert row.cosine > at_least
        assert row.bound is None

    return play


def known_draws() -> None:
    """Known randomness shows every image by name, guessed randomness nothing."""
    known, guessed = (images_of(Case(randomness, scenario.REPEATS)) for randomness in (PUBLIC, SECRET))
    assert known.score.worst_by_name > 0.9
    assert known.chance.by_name < 0.1
    assert abs(guessed.score.by_name) < 0.4  # of four images of 64 unrelated pixels
    assert guessed.score.best_match < 0.5


def solved_draws() -> None:
    """Secret randomness alone is no defence of a first model that anybody made."""
    attack = images_of(Case(SECRET, scenario.SOLVES), TINY, images=1, evaluations=250)
    assert attack.score.best_match > 0.5  # pixels where the noise was cut, a third of them, are lost in such pictures
    assert attack.chance.best_match < 0.2
    assert attack.score.by_name is None


def one_large() -> None:
    """Weights by samples leave it all of the mean; equal ones and a clip norm that follows it take that away."""
    samples, _, adaptive, _ = ways(160, 10)
    assert shares_in(samples, 1)[0] > 0.97
    first, second = shares_in(adaptive, 2)
    assert 0.9 > first > second


def three_equals() -> None:
    assert shares_in(ways(160, 10)[-1], 1)[0] == pytest.approx(1 / 3, abs=0.1)


MEASURED: dict[Scenario, Played] = {
    scenario.HONEST: honest,
    scenario.NOTHING: refused(scenario.NOTHING, 0.999999),
    scenario.LITTLE: refused(scenario.LITTLE, 0.95),
    scenario.ONE_STEP: refused(scenario.ONE_STEP, 0.5),
    scenario.AGAIN: refused(scenario.AGAIN, 0.999999),
    scenario.REPEATS: known_draws,
    scenario.SOLVES: solved_draws,
    scenario.LARGE: one_large,
    scenario.EQUALS: three_equals,
}
PLAYED = {  # by tests of their own, on real clients: without the defence first, where that can be switched off
    scenario.CRAFTED: (
        test_inversion.test_without_defences_every_image_is_recovered_by_name,
        test_inversion.test_each_defence_alone_leaves_nothing,
    ),
    scenario.PLANTED: (
        test_inversion.test_a_false_sum_plants_the_trap_after_an_honest_round,
        test_inversion.test_each_defence_alone_leaves_nothing_of_the_planted_trap,
    ),
    scenario.FLIPPED: (test_spoiled_rounds.test_from_the_start_the_loss_rings_after_three_spoiled_rounds,),
    scenario.FALSE_SUM: (
        test_false_sums.test_without_the_check_nobody_notices,
        test_false_sums.test_a_false_sum_is_found_by_everybody_and_convicts,
    ),
    scenario.UNCLIPPED: (
        test_spoilers.test_an_update_that_is_not_clipped,
        test_opened_updates.test_the_spoiler_is_found_and_the_others_go_on,
    ),
    scenario.WRONG_SHARES: (
        test_blame.test_a_dishonest_dealer_costs_one_attempt,
        test_blame.test_a_lying_revealer_costs_nothing,
    ),
}
LONG = {scenario.SOLVES, scenario.LARGE, scenario.EQUALS}  # half a minute each


def test_every_scenario_is_played() -> None:
    assert MEASURED.keys() == set(scenario.MEASURED)
    assert PLAYED.keys() == set(scenario.PLAYED)
    in_benchmarks = {case.adversary for case in CASES} | ATTACKS.keys() | {way.scenario for way in ways(2, 1)}
    assert in_benchmarks == set(scenario.MEASURED)


@pytest.mark.parametrize("tried", [one for one in scenario.MEASURED if one not in LONG], ids=lambda one: one.name)
def test_short(tried: Scenario) -> None:
    MEASURED[tried]()


@pytest.mark.soak
@pytest.mark.parametrize("tried", [one for one in scenario.MEASURED if one in LONG], ids=lambda one: one.name)
def test_long(tried: Scenario) -> None:
    MEASURED[tried]()


# --- the documents ----------------------------------------------------------------------------------------------------


def rows_of(document: Path, heading: str) -> Iterator[list[str]]:
    """The cells of the first table below ``heading`` whose columns begin there."""
    text = document.read_text()
    table = text[text.index(heading) :]
    lines = re.findall(r"^\|.*\|$", table.split("\n\n")[0], re.MULTILINE)
    for line in lines[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_each_row_of_the_security_table_is_a_scenario_that_is_played() -> None:
    tried = [row[0] for row in rows_of(ROOT / "SECURITY.md", "| attack | figure |")]
    assert len(tried) >= 6
    assert set(tried) == {one.tried for one in SCENARIOS if one.tried}


def test_each_row_of_the_results_is_a_scenario() -> None:
    results = ROOT / "docs" / "results"
    cases = [tuple(row[:2]) for row in rows_of(results / "attacks.md", "| randomness | adversary |")]
    assert cases == [(case.randomness, case.adversary.name) for case in CASES]
    terms = [row[0] for row in rows_of(results / "attacks.md", "| what the others are offered |")]
    assert terms == [one.name for one in ATTACKS]
    measured = [row[0] for row in rows_of(results / "dominance.md", "| weights and clip norm |")]
    assert list(dict.fromkeys(measured)) == [way.name for way in ways(1600, 100)]
