"""Members that are late, silent or say two things in one step are named: page, ``rounds`` and audit log."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import select
from tests.aggregator.dashboard.pages import page_text, seats_in
from tests.aggregator.support.driver import STEPS, ProblemError, drive
from tests.aggregator.support.sites import NewFederation, Serve, Site

from fedddpm_aggregator.db.tables import AuditRow
from fedddpm_aggregator.service.conduct import (
    JOIN,
    LATELY,
    NAMED,
    RESTARTED,
    AttemptSteps,
    Miss,
    SessionSteps,
    missed_steps,
    to_be_called,
)
from fedddpm_aggregator.service.history.run_report import run_report

ALL = frozenset("abcd")
DID = {"shares": ALL, "upload": ALL, "confirmation": ALL, "unmask": ALL}
SHORT_S = 4.0


def session(opened: bool = True, timed_out: bool = False, **changes: Any) -> SessionSteps:
    sets: dict[str, Any] = {"expected": ALL, "joined": ALL, "cohort": ALL, "restarted": frozenset()}
    did = {**DID, **{step: frozenset(changes.pop(step)) for step in DID if step in changes}}
    sets |= {name: frozenset(members) for name, members in changes.items()}
    return SessionSteps(**sets, did=did, opened=opened, timed_out=dict.fromkeys(DID, timed_out))


# --- the rules --------------------------------------------------------------------------------------------------------


def test_the_first_step_that_was_missed_counts() -> None:
    assert missed_steps(session()) == {}
    rest = dict.fromkeys(DID, "abc")
    assert missed_steps(session(joined="abc", cohort="abc", **rest)) == {"d": JOIN}
    assert missed_steps(session(**rest)) == {"d": "shares"}
    assert missed_steps(session(**{**rest, "shares": ALL})) == {"d": "upload"}
    assert missed_steps(session(confirmation="abc", unmask="abc")) == {"d": "confirmation"}
    assert missed_steps(session(unmask="abc")) == {"d": "unmask"}


def test_who_started_again_is_told_apart() -> None:
    assert missed_steps(session(restarted="d", upload="abc", confirmation="abc", unmask="abc")) == {"d": RESTARTED}
    assert missed_steps(session(restarted="d")) == {}, "it had done its part before"


def test_a_step_that_was_cut_off_is_nobodys_fault() -> None:
    """The coordinator ended the run, or a newer roster came, before the time was over."""
    cut = session(opened=False, upload="ab", confirmation="", unmask="")
    assert missed_steps(cut) == {}
    late = session(opened=False, timed_out=True, upload="abc", confirmation="", unmask="")
    assert missed_steps(late) == {"d": "upload"}
    assert missed_steps(session(opened=False, joined="", cohort="", shares="", upload="")) == {}


def test_where_most_are_silent_nobody_is_named() -> None:
    """The line of the aggregator failed, or one member's bad shares made all the others leave."""
    alone = session(opened=False, timed_out=True, upload="d", confirmation="", unmask="")
    assert missed_steps(alone) == {}


def attempts(*missed: Iterable[str]) -> list[AttemptSteps]:
    return [AttemptSteps(number, 0, dict.fromkeys(members, JOIN), {}) for number, members in enumerate(missed)]


def test_three_of_the_last_five() -> None:
    assert [one.member for one in to_be_called(attempts("d", "", "d", "", "d"), {})] == ["d"]
    assert to_be_called(attempts("d", "d", "", "", "", "d"), {}) == [], "the first one is too long ago"
    assert to_be_called(attempts("d", "d"), {}) == []
    assert LATELY == 5
    (named,) = to_be_called(attempts("d", "d", "d"), {})
    assert "in 3 of the last 5 attempts (round 1, attempt 1: did not join in time; round 2" in named.happened
    assert "federation roster remove --member d" in named.to_do


def test_an_answer_to_the_newest_sum_may_still_come() -> None:
    silent = [AttemptSteps(number, 0, {}, {"d": "unmask"}) for number in range(4)]
    assert to_be_called(silent[:3], {}) == []
    assert [miss.round for miss in to_be_called(silent, {})[0].misses] == [0, 1, 2]


def test_two_contents_are_named_at_once() -> None:
    (named,) = to_be_called([], {"d": [Miss(2, 0, "upload of part decoder")]})
    assert "sent two different messages for one step (round 3, attempt 1: upload of part decoder)" in named.happened
    assert "two processes with one identity" in named.to_do


# --- a served federation ----------------------------------------------------------------------------------------------


def named_in_audit(site: Site) -> list[dict[str, Any]]:
    with site.federation.context() as ctx, ctx.database.read() as db:
        rows = db.scalars(select(AuditRow.details).where(AuditRow.action == NAMED).order_by(AuditRow.seq))
        return [json.loads(row) for row in rows]


def round_without_d_from(site: Site, round_: int, step: str) -> None:
    """A whole round in which ``d`` falls silent before ``step``."""
    seats, silent = seats_in(site, round_), False
    for one in STEPS:
        silent = silent or one == step
        drive([seat for seat in seats if not (silent and seat.name == "d")], [one])


@pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
def test_three_silences_in_different_steps(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=6, join_s=SHORT_S, shares_s=SHORT_S, masked_s=SHORT_S)
    site = serve(federation)
    for round_, step in enumerate(("join", "share")):
        round_without_d_from(site, round_, step)
    seats_in(site, 2)
    assert "Institutions to call" not in page_text(site)
    assert named_in_audit(site) == []
    round_without_d_from(site, 2, "upload")
    seats_in(site, 3)
    (told,) = named_in_audit(site)
    assert (told["member"], told["run"], told["round"]) == ("d", "run-1", 2)
    assert "round 3, attempt 1: did not finish its upload in time" in told["reason"]
    shown = page_text(site)
    assert "Institutions to call" in shown
    assert "It was late or silent in 3 of the last 5 attempts" in shown
    with site.federation.context() as ctx:
        (conduct,) = run_report(ctx).conduct
    assert [miss.step for miss in conduct.misses] == ["join", "shares", "upload"]
    round_without_d_from(site, 3, "upload")
    seats_in(site, 4)
    assert len(named_in_audit(site)) == 1, "it is named already"


@pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
def test_a_second_content(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=6)
    site = serve(federation)
    seats = seats_in(site)
    drive(seats, STEPS[:3])
    liar = seats[3]
    segment, index = next(iter(liar.chunks))
    data = liar.chunks[segment, index]
    with pytest.raises(ProblemError, match="arrived before with other content"):
        liar.put(segment, index, data[:-1] + bytes([data[-1] ^ 1]))
    drive(seats, STEPS[3:])
    seats_in(site, 1)
    (told,) = named_in_audit(site)
    assert told["member"] == "d"
    assert f"chunk {segment}/{index} of part decoder" in told["reason"]
    assert "sent two different messages for one step" in page_text(site)
    drive(seats_in(site, 1))
    seats_in(site, 2)
    assert len(named_in_audit(site)) == 1, "told once"
