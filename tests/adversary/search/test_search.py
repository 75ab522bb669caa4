"""No lie of the aggregator and c_max members tells more than the protocol allows; a weaker protocol does tell more.

Everything that can happen in small federations is gone through, up to names (``cases.py``); larger ones are sampled.
"""

from __future__ import annotations

import pytest
from tests.adversary.search.cases import AT_ONCE, CASES, DEEP, Case, Found, search
from tests.adversary.search.honest import Federation, watched
from tests.adversary.search.knowledge import Party
from tests.adversary.search.mutant_table import BLAMELESS, FOUND, NOTHING_FOUND
from tests.adversary.search.sampling import sample

BY_NAME = {case.name: case for case in (*CASES, *DEEP, AT_ONCE)}


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(c, marks=pytest.mark.soak) for c in DEEP)], ids=lambda c: c.name
)
def test_nothing_is_given_away(case: Case) -> None:
    looked_at = search(case)
    assert looked_at > 0 or case.name == "a roster of few"


SLOW = {"a retry of five", "sharers of six"}  # and what is found in nothing smaller


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak if FOUND[name].where in SLOW else ()) for name in FOUND]
)
def test_the_search_finds_what_a_weaker_protocol_gives_away(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for weaken in FOUND[name].weaken:
        weaken(monkeypatch)
    with pytest.raises(Found):
        search(BY_NAME[FOUND[name].where])


@pytest.mark.parametrize("name", NOTHING_FOUND)
def test_what_gives_nothing_away_says_why(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for weaken in NOTHING_FOUND[name].weaken:
        weaken(monkeypatch)
    assert NOTHING_FOUND[name].why
    assert search(BY_NAME["without the convicted" if name in BLAMELESS else "given up before"]) > 0


@pytest.mark.soak
@pytest.mark.parametrize("name", NOTHING_FOUND)
def test_what_gives_nothing_away_does_so_nowhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for weaken in NOTHING_FOUND[name].weaken:
        weaken(monkeypatch)
    for case in CASES:
        search(case)


@pytest.mark.parametrize("federation", [Federation(6, 0), Federation(6, 1), Federation(7, 2, 4)], ids=str)
@pytest.mark.parametrize(
    "seeds", [range(12), pytest.param(range(12, 3000), marks=pytest.mark.soak)], ids=["few", "many"]
)
def test_nothing_is_given_away_in_larger_federations(federation: Federation, seeds: range) -> None:
    opened = 0
    with watched():
        for seed in seeds:
            party = Party(federation)
            *_, facts = sample(federation, seed)
            assert party.violation(facts) is None, seed
            opened += bool(party.sums(facts)[1])
    assert opened > len(seeds) // 3
