"""Who else computes: a curious member with a transcript, alone and together with the aggregator."""

from __future__ import annotations

import pytest
from tests.adversary.search.cases import TALES, Case, Found, one, search, two
from tests.adversary.search.honest import Federation, Offer, watched
from tests.adversary.search.knowledge import Party
from tests.adversary.search.outcomes import OPEN, Facts
from tests.adversary.search.sessions import ALL, PLAIN, Sessions


def transcript(facts: Facts, member: int) -> Facts:
    """What a member of a session is shown when it has ended: masked words and answers of the survivors."""
    mine = next((node for node in facts if node.member == member and node.label[0] == "answer"), None)
    if mine is None:
        return frozenset()
    return frozenset(
        node
        for node in facts
        if node.machine.session_id == mine.machine.session_id and mine.label[2][0] >> node.member & 1
    )


@pytest.mark.parametrize("federation", [Federation(n, 0) for n in (3, 4, 5)], ids=str)
def test_a_curious_member_with_a_transcript_learns_the_sum_of_the_others(federation: Federation) -> None:
    """The aggregator keeps to the protocol, whoever drops; the member has its own secrets, shares and update too."""
    learned = 0
    with watched():
        sessions = Sessions(federation)
        for facts in one(PLAIN)(sessions, Party(federation)):
            for member in federation.honest:
                party = Party(federation, insiders=frozenset({member}), accomplices=False)
                told = transcript(facts, member)
                columns, basis = party.sums(told)
                assert len(basis) <= 1
                if basis:
                    survivors = {node.member for node in told}
                    assert basis == [[1] * len(columns)]
                    assert {column[2] for column in columns} == survivors - {member}
                    assert len(survivors) >= federation.quorum(federation.n) or len(survivors) >= 3
                    learned += 1
    assert learned >= federation.n


def colluding(n: int, two_sessions: bool = False) -> Case:
    """The aggregator and one member, in a roster that allows for none (c_max = 0)."""
    play = two(OPEN, PLAIN, Offer(1)) if two_sessions else one(ALL if n < 5 else TALES)
    return Case("outside the model", (Federation(n, 0, corrupt=1),), play)


@pytest.mark.parametrize("n", [3, 4])
def test_an_accomplice_that_the_roster_does_not_allow_for_learns_no_more_from_one_session_of_few(n: int) -> None:
    assert search(colluding(n)) > 0


def test_such_an_accomplice_learns_no_more_from_two_sessions_of_three() -> None:
    assert search(colluding(3, two_sessions=True)) > 0


def test_such_an_accomplice_has_two_sums_of_four_opened() -> None:
    """t is 2 of a cohort of 3: with the accomplice one honest member is enough, and the others are not spent."""
    with pytest.raises(Found) as found:
        search(colluding(4, two_sessions=True))
    assert found.value.what.startswith("several sums over one base")


def test_such_an_accomplice_reads_a_single_update_from_one_session_of_five() -> None:
    """t is 3 of 5: the accomplice confirms two sets, and two honest members answer for each."""
    with pytest.raises(Found) as found:
        search(colluding(5))
    assert found.value.what.startswith("one session gives away 1 * update 0 of ")
    assert "+" not in found.value.what
