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

from fedddpm_aggregator.db.tables import AuditRow, SessionRow
from fedddpm_aggregator.errors import HistoryError, OperatorError
from fedddpm_aggregator.service.conduct import NAMED
from fedddpm_aggregator.service.history.run_report import run_report
from fedddpm_aggregator.service.suspicion import SpoiledDraw, Suspicion, suspicion
from fedddpm_aggregator.service.verification.verify_history import verify_history
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.roster import Sharding
from fedddpm_protocol.agreement.shards import draw, sessions_of
from fedddpm_protocol.wire.phases import Phase

ALL = "abcdefgh"


def told(*spoiled: str, enrolled: str = ALL, missing: dict[int, str] | None = None) -> Suspicion | None:
    """Rounds of eight, with who was drawn into the sums that were spoiled, and who of them was ``missing``."""
    away = missing or {}
    rounds = (
        SpoiledDraw(number, frozenset(ids), frozenset(ids) - set(away.get(number, "")), len(ALL))
        for number, ids in enumerate(spoiled)
    )
    return suspicion(rounds, enrolled)


def certainly(found: Suspicion | None) -> Suspicion:
    assert found is not None
    return found


def most(found: Suspicion | None) -> str:
    return "".join(one.member for one in certainly(found).most)


def named(found: Suspicion | None) -> str:
    return "".join(one.member for one in certainly(found).named)


# --- the rules --------------------------------------------------------------------------------------------------------

SPOILS_ALONE = ("abcd", "abef", "aceg", "adgh", "abch", "aefh", "acdf", "abdg", "aegh")  # always a


def test_who_is_in_all_spoiled_sums_is_left_over() -> None:
    assert told() is None
    assert [most(told(*SPOILS_ALONE[:count])) for count in (1, 2, 3)] == ["abcd", "ab", "a"]
    found = certainly(told(*SPOILS_ALONE[:2]))
    assert found.happened == "sums were spoiled in 2 draws (rounds 1, 2); in all of them: a, b, 2 of 8 members"


def test_one_is_named_once_chance_hardly_explains_it() -> None:
    """Of two faults that have nothing to do with each other, somebody is often the only one in both."""
    assert [named(told(*SPOILS_ALONE[:count])) for count in range(1, 10)] == [""] * 8 + ["a"]
    found = certainly(told(*SPOILS_ALONE))
    (one,) = found.named
    assert (one.times, one.chance) == (9, 2**-9)
    assert found.says(one).startswith("was in the spoiled sums of 9 out of 9 draws (rounds 1, 2, 3, 4, 5, 6, 7, 8, 9)")


def test_two_that_spoil_are_named_though_neither_is_alone_in_it() -> None:
    together = ("abcd", "abef", "abgh", "abce", "abdf", "abcg", "abdh", "abeg", "abfh")
    assert named(told(*together)) == "ab"


def test_the_same_draw_again_tells_nothing_new_but_clears_who_was_missing() -> None:
    again = certainly(told("abcd", "abcd", "abcd", "aefg"))
    assert (again.draws, again.rounds, most(again)) == (2, (0, 3), "a")
    assert most(told("abcd", "abcd", missing={1: "b"})) == "acd"
    absences = {number: ALL[1 + number % 3] for number in range(40)}
    found = certainly(told(*["abcd"] * 40, missing=absences))
    assert (found.draws, named(found)) == (1, ""), "who is always there is no suspect for that"


def test_a_round_whose_sums_were_all_spoiled_tells_nothing() -> None:
    assert told(ALL) is None


def test_what_a_member_that_left_explains_is_not_held_against_others() -> None:
    assert told("abcd", "abef", "aceg", enrolled="bcdefgh") is None
    other = certainly(told(*SPOILS_ALONE, enrolled="abcdefg"))
    assert named(other) == "a", "h left, and explains little"


def test_a_sum_that_wrapped_by_chance_hides_nobody_for_long() -> None:
    found = certainly(told("bcde", *SPOILS_ALONE[:5]))
    assert "nobody is in all: more than one spoils them, or some wrapped by chance; in 5: a" in found.happened
    assert named(found) == ""
    more = ("abfg", "aceh", "adeg", "afgh", "abcf", "adfh")
    assert named(told("bcde", *SPOILS_ALONE, *more)) == "a"


def test_the_chance_is_the_exact_tail() -> None:
    found = certainly(told("ab", "acd", "a"))
    assert found.most[0].chance == pytest.approx(2 / 8 * 3 / 8 * 1 / 8)
    found = certainly(told("ab", "cd", "ac", "ad"))  # a in three of four
    p = 2 / 8
    assert found.most[0].chance == pytest.approx(4 * p**3 * (1 - p) + p**4)


# --- a served federation ----------------------------------------------------------------------------------------------

MEMBERS = tuple(f"m{index:02}" for index in range(10))
SPOILER = "m03"


def spoil(seats: Sequence[Seat]) -> None:
    """A session in which the spoiler sends what no clipped update can be."""
    drive(seats, STEPS[:2])
    drive([seat for seat in seats if seat.name != SPOILER], STEPS[2:3])
    (spoiler,) = (seat for seat in seats if seat.name == SPOILER)
    spoiler.encode_unchecked(np.full(spoiler.part.values.coordinates, 2**29, np.uint32))
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
def test_shards_are_drawn_anew_until_the_spoiler_is_named(new_federation: NewFederation, serve: Serve) -> None:
    rules = Sharding(4, 0, bytes(32), "a test", redraws=12)
    federation = new_federation(members=MEMBERS, c_max=0, sharding=(rules,))
    federation.start_run(rounds=13, clip_norm=0.05, weighting="equal")
    site = serve(federation)
    left, rounds, named = frozenset(MEMBERS), 0, []
    while not named:
        spec = spec_of(first_state(site, rounds), federation.roster)
        assert spec.draw == rounds
        spoiled = round_with_spoiler(site, rounds)
        assert spoiled in {frozenset(shard) for shard in draw(federation.roster, rounds)}
        assert [part.spoiled for part in result_of(site, rounds).parts].count(True) == 1
        left, rounds = left & spoiled, rounds + 1
        with federation.context() as ctx:
            report = run_report(ctx)
        assert report.suspicion is not None
        assert {one.member for one in report.suspicion.most} == left
        named = [one.member for one in report.conduct]
    assert left == {SPOILER}
    assert named == [SPOILER]
    assert 5 <= rounds <= 8
    assert f"Call {SPOILER}" in page_text(site)
    assert f"in all of them: {SPOILER}, 1 of 10 members" in page_text(site)
    round_with_spoiler(site, rounds)
    with federation.context() as ctx:
        with ctx.database.read() as db:
            told = [json.loads(row) for row in db.scalars(select(AuditRow.details).where(AuditRow.action == NAMED))]
        verify_history(ctx)
    assert [(one["member"], one["round"]) for one in told] == [(SPOILER, rounds - 1)], "once"
    federation.install(members=tuple(one for one in federation.roster.members if one.id != SPOILER))
    with federation.context() as ctx:
        report = run_report(ctx)
    assert (report.suspicion, report.conduct) == (None, [])
    assert federation.roster.sharding[0].redraws == 12


@pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
def test_a_result_that_calls_a_sum_spoiled_which_never_came_out_is_found(
    new_federation: NewFederation, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The aggregator would move on to another draw by it."""
    federation = new_federation(members=MEMBERS, c_max=0, sharding=(Sharding(4, 0, bytes(32), "a test", redraws=4),))
    federation.start_run(rounds=2, shares_s=3.0, weighting="equal")
    site = serve(federation)
    monkeypatch.setattr(SessionRow, "is_spoiled", property(lambda row: row.phase == Phase.FAILED))
    state = first_state(site)
    for session in sessions_of(Method.UDEC, federation.roster):
        seats = take_seats(site.institutions.values(), federation.roster, state, session)
        drive(seats, STEPS[:1] if session == "decoder.1" else STEPS)
    until(site, lambda state: state.results > 0)
    with federation.context() as ctx, pytest.raises(HistoryError, match="not what the attempt's specification"):
        verify_history(ctx)


@pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
def test_hidden_counts_are_refused_with_further_draws(new_federation: NewFederation) -> None:
    federation = new_federation(members=MEMBERS, c_max=0, sharding=(Sharding(4, 0, bytes(32), "a test", redraws=4),))
    with pytest.raises(OperatorError, match="reveal sample counts"):
        federation.start_run(rounds=2, weighting="hidden")


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
    assert {one.member for one in report.suspicion.most} == first
    assert (report.suspicion.draws, report.conduct) == (1, [])
    assert not any(part.spoiled for part in result_of(site, 0).parts), "results are as they were before"
