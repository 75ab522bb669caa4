"""Who is left over of those in spoiled sums: the rules, and shards that are drawn anew until one is."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from sqlalchemy import select
from tests.aggregator.dashboard.pages import page_text
from tests.aggregator.support.driver import STEPS, Seat, drive, spec_of, take_seats
from tests.aggregator.support.sites import NewFederation, Serve, Site
from tests.aggregator.support.watching import first_state, result_of, until

from fedddpm_aggregator.db.tables import AuditRow
from fedddpm_aggregator.service.conduct import NAMED
from fedddpm_aggregator.service.history.run_report import run_report
from fedddpm_aggregator.service.suspicion import SpoiledDraw, Suspicion, suspicion
from fedddpm_aggregator.service.verification.verify_history import verify_history
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.roster import Sharding
from fedddpm_protocol.agreement.shards import draw, sessions_of

ALL = "abcdefgh"


def told(*spoiled: str, enrolled: str = ALL, members: str = ALL) -> Suspicion | None:
    draws = [SpoiledDraw(number, frozenset(ids), frozenset(members)) for number, ids in enumerate(spoiled)]
    return suspicion(draws, enrolled)


def certainly(found: Suspicion | None) -> Suspicion:
    assert found is not None
    return found


# --- the rules --------------------------------------------------------------------------------------------------------


def test_who_is_in_all_spoiled_sums_is_left_over() -> None:
    assert told() is None
    one = certainly(told("abcd"))
    assert (one.members, one.cornered) == (("a", "b", "c", "d"), None)
    two = certainly(told("abcd", "abef"))
    assert (two.members, two.cornered) == (("a", "b"), None)
    assert "(rounds 1, 2): a, b, 2 of 8 members; if one spoils alone, it is among them" in two.happened
    three = certainly(told("abcd", "abef", "aceg"))
    assert (three.members, three.cornered, three.chance) == (("a",), "a", 1 / 8)
    assert "is alone in 3 of 3 draws whose sums were spoiled (rounds 1, 2, 3)" in three.says


def test_one_draw_names_nobody() -> None:
    assert certainly(told("a", members="ab")).cornered is None


def test_the_same_members_again_tell_nothing_new() -> None:
    found = certainly(told("abcd", "abcd", "abcd", "aefg"))
    assert (found.draws, found.times, found.rounds) == (2, 2, (0, 3))


def test_a_round_whose_sums_were_all_spoiled_tells_nothing() -> None:
    assert told(ALL) is None


def test_what_a_member_that_left_explains_is_not_held_against_others() -> None:
    assert told("abcd", "abef", "aceg", enrolled="bcdefgh") is None


def test_a_sum_that_wrapped_by_chance_hides_nobody_for_long() -> None:
    """Once no one is in all, the most often seen is named only where chance would hardly do it."""
    spoiled = ["bcde"] + [f"a{others}" for others in ("bcd", "efg", "bfh", "cgh", "deh")]
    few = certainly(told(*spoiled))
    assert (few.members, few.times, few.draws, few.cornered) == (("a",), 5, 6, None)
    assert "no member is in all of them: two spoil sums, or one wrapped by chance; in 5: a" in few.happened
    more = [f"a{others}" for others in ("bdg", "cef", "bgh", "cdf", "beh", "dfg", "bce", "bcg", "def")]
    assert certainly(told(*spoiled, *more)).cornered == "a"


def test_the_chance_is_the_exact_tail() -> None:
    found = certainly(told("ab", "acd", "a"))
    assert found.chance == pytest.approx(2 / 8 * 3 / 8 * 1 / 8)
    found = certainly(told("ab", "cd", "ac", "ad"))  # a in three of four
    p = 2 / 8
    assert found.chance == pytest.approx(4 * p**3 * (1 - p) + p**4)


# --- a served federation ----------------------------------------------------------------------------------------------

MEMBERS = tuple(f"m{index:02}" for index in range(10))
SPOILER = "m03"


def spoil(seats: Sequence[Seat]) -> None:
    """A session in which the spoiler sends what no clipped update can be."""
    drive(seats, STEPS[:2])
    drive([seat for seat in seats if seat.name != SPOILER], STEPS[2:3])
    (spoiler,) = (seat for seat in seats if seat.name == SPOILER)
    spoiler.encode_unchecked(np.full(spoiler.part.values.coordinates, 2**27, np.uint32))
    for segment, index in spoiler.chunks:
        spoiler.put(segment, index)
    spoiler.finish()
    drive(seats, STEPS[3:])


def round_with_spoiler(site: Site, round_: int) -> frozenset[str]:
    """Everybody takes part; the members of the shard that was spoiled."""
    state, roster = first_state(site, round_), site.federation.roster
    found: frozenset[str] = frozenset()
    for session in sessions_of(Method.UDEC, roster):
        seats = take_seats(site.institutions.values(), roster, state, session)
        if SPOILER in {seat.name for seat in seats}:
            found = frozenset(seat.name for seat in seats)
            spoil(seats)
        else:
            drive(seats)
    until(site, lambda state: state.results > round_)
    return found


@pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
def test_shards_are_drawn_anew_until_the_spoiler_is_left_over(new_federation: NewFederation, serve: Serve) -> None:
    rules = Sharding(4, 0, bytes(32), "a test", redraws=8)
    federation = new_federation(members=MEMBERS, c_max=0, sharding=(rules,))
    federation.start_run(rounds=8, clip_norm=0.05)
    site = serve(federation)
    left, rounds = frozenset(MEMBERS), 0
    while len(left) > 1:
        spec = spec_of(first_state(site, rounds), federation.roster)
        assert spec.draw == rounds
        spoiled = round_with_spoiler(site, rounds)
        assert spoiled in {frozenset(shard) for shard in draw(federation.roster, rounds)}
        assert [part.spoiled for part in result_of(site, rounds).parts].count(True) == 1
        left, rounds = left & spoiled, rounds + 1
        with federation.context() as ctx:
            report = run_report(ctx)
        assert report.suspicion is not None
        assert report.suspicion.members == tuple(sorted(left))
        assert [one.member for one in report.conduct] == ([SPOILER] if len(left) == 1 else [])
    assert left == {SPOILER}
    assert 2 <= rounds <= 6
    assert f"Call {SPOILER}" in page_text(site)
    assert "in all sums that were spoiled" in page_text(site)
    with federation.context() as ctx:
        with ctx.database.read() as db:
            named = [json.loads(row) for row in db.scalars(select(AuditRow.details).where(AuditRow.action == NAMED))]
        verify_history(ctx)
    assert [(one["member"], one["round"]) for one in named] == [(SPOILER, rounds - 1)]
    federation.install(members=tuple(one for one in federation.roster.members if one.id != SPOILER))
    with federation.context() as ctx:
        report = run_report(ctx)
    assert (report.suspicion, report.conduct) == (None, [])
    assert federation.roster.sharding[0].redraws == 8


@pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
def test_without_further_draws_shards_stay_as_they_are(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation(members=MEMBERS, c_max=0, sharding=(Sharding(4, 0, bytes(32), "a test"),))
    federation.start_run(rounds=3, clip_norm=0.05)
    site = serve(federation)
    first = round_with_spoiler(site, 0)
    assert spec_of(first_state(site, 1), federation.roster).draw == 0
    assert round_with_spoiler(site, 1) == first
    with federation.context() as ctx:
        report = run_report(ctx)
    assert report.suspicion is not None
    assert report.suspicion.members == tuple(sorted(first))
    assert report.conduct == []
