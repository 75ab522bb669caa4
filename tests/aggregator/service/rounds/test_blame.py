"""One dishonest member of four, over real HTTP: it is named with its evidence, sits out, and the others finish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select
from tests.aggregator.support.driver import STEPS, ProblemError, Seat, drive, take_seats
from tests.aggregator.support.sites import NewFederation, Serve, Site
from tests.aggregator.support.watching import check_part, first_state, until
from tests.protocol.support.trials import SPOILED, other_secrets, with_another_key, with_items

from fedddpm_aggregator.db.tables import AuditRow
from fedddpm_aggregator.service.history.session_lines import overview
from fedddpm_aggregator.service.verification.verify_history import verify_history
from fedddpm_protocol.errors import AccusationError
from fedddpm_protocol.session.verdicts import Offence, verify_evidence
from fedddpm_protocol.wire.api import CohortReply, RunState
from fedddpm_protocol.wire.evidence import Evidence
from fedddpm_protocol.wire.messages import Accusation, Confirmations, RevealedShare, Unmask
from fedddpm_protocol.wire.phases import Phase

pytestmark = pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)  # its subject is not the database


def begin(new_federation: NewFederation, serve: Serve, **changes: Any) -> tuple[Site, list[Seat]]:
    federation = new_federation()
    federation.start_run(**{"rounds": 1, **changes})
    site = serve(federation)
    return site, seats_in(site, first_state(site))


def seats_in(site: Site, state: RunState, members: str = "abcd", **participant: object) -> list[Seat]:
    everybody = [site[name] for name in members]
    return take_seats(everybody, site.federation.roster, state, "decoder", **participant)


def spoil(seat: Seat, how: Callable[..., Any]) -> None:
    """Let a seat deal dishonestly."""
    seat.wait_for(Phase.SHARES)
    cohort = CohortReply.model_validate_json(seat.get("cohort"))
    honest = seat.machine.receive_cohort(cohort.joins)
    assert seat.machine._cohort is not None
    seat.shares_message = how(seat.machine, seat.machine._cohort, honest)
    seat.machine._own_deal = seat.shares_message.deal
    seat.post("shares", seat.shares_message)


def accuse(seat: Seat) -> None:
    """Receive shares, find them wrong, and say so."""
    with pytest.raises(AccusationError):
        seat.mask()
    assert seat.machine.accusation is not None
    seat.post("accusations", seat.machine.accusation)


def convicted(site: Site, state: RunState, offence: Offence) -> None:
    """What everybody is told holds, and the aggregator says it where people look."""
    (told,) = state.excluded
    evidence = Evidence.model_validate_json(site["a"].send("GET", f"/v1/evidence/{told.evidence}").content)
    found = verify_evidence(site.federation.roster, evidence)
    assert (told.member, found.verdict.member, found.verdict.offence) == ("d", "d", offence)
    assert evidence.sha256 == told.evidence
    with site.federation.context() as ctx:
        lines = overview(ctx)
        with ctx.database.read() as db:
            entries = db.scalars(select(AuditRow.details).where(AuditRow.action == "member convicted")).all()
        assert verify_history(ctx)["verdicts"] == 1
    assert [line.verdicts for line in lines if line.verdicts] == [(f"{told.words} (evidence {told.evidence[:16]})",)]
    assert len(entries) == 1
    assert told.evidence in entries[0]


def others_finish(site: Site, state: RunState, recorded: tuple[str, ...] = ()) -> None:
    """The convicted member is not admitted, and the other three open the round without waiting for it."""
    seats = seats_in(site, state, "abc", recorded_u3=recorded)
    (guilty,) = seats_in(site, state, "d")
    with pytest.raises(ProblemError) as caught:
        guilty.join()
    assert (caught.value.status, caught.value.code) == (403, "excluded")
    assert "evidence" in str(caught.value)
    drive(seats)
    check_part(site, 0, seats)


@pytest.mark.parametrize("how", ["self mask", "garbage"])
def test_a_wrong_share_ends_the_session_before_anything_is_uploaded(
    new_federation: NewFederation, serve: Serve, how: str
) -> None:
    site, seats = begin(new_federation, serve)
    drive(seats, ["join"])
    drive(seats[:3], ["share"])
    spoil(seats[3], with_items(SPOILED[how]))
    accuse(seats[0])
    seats[0].post("accusations", seats[0].machine.accusation)  # type: ignore[arg-type]  # the answer was lost
    state = until(site, lambda state: state.attempt == 1)
    convicted(site, state, Offence.WRONG_SHARE)
    others_finish(site, state)


def test_shares_of_another_secret_end_the_session_and_the_rest_may_meet_again(
    new_federation: NewFederation, serve: Serve
) -> None:
    site, seats = begin(new_federation, serve)
    drive(seats, ["join"])
    drive(seats[:3], ["share"])
    spoil(seats[3], other_secrets("self"))
    drive(seats, STEPS[2:])
    state = until(site, lambda state: state.attempt == 1)
    convicted(site, state, Offence.WRONG_SECRET)
    others_finish(site, state, ("a", "b", "c"))


def test_a_wrong_answer_stops_nothing(new_federation: NewFederation, serve: Serve) -> None:
    site, seats = begin(new_federation, serve, rounds=2)
    drive(seats, STEPS[:4])
    lie(seats[3])
    drive(seats[:3], ["unmask"])
    check_part(site, 0, seats)
    state = until(site, lambda state: state.round == 1)
    convicted(site, state, Offence.WRONG_ANSWER)


def lie(seat: Seat) -> None:
    """An UNMASK, properly signed, of which one share is wrong."""
    seat.wait_for(Phase.UNMASK)
    confirmations = Confirmations.model_validate_json(seat.get("confirmations"))
    body = seat.machine.receive_confirmations(confirmations.confirmations, lambda record: None).parse()
    wrong = {**body.revealed, "a": RevealedShare("self_mask", bytes(32), bytes(32))}
    raw = replace(body, revealed=wrong).encode()
    seat.post("unmask", Unmask(id=seat.name, body=raw, signature=seat.institution.key.sign("unmask", raw)))


def test_two_who_contradict_each_other_are_named_and_the_accuser_sits_out(
    new_federation: NewFederation, serve: Serve
) -> None:
    site, seats = begin(new_federation, serve)
    drive(seats, ["join"])
    drive(seats[:3], ["share"])
    spoil(seats[3], with_another_key)
    accuse(seats[0])
    drive(seats[1:], STEPS[2:])
    check_part(site, 0, seats[1:])
    with site.federation.context() as ctx:
        (line,) = overview(ctx)
    assert line.verdicts == ("a and d contradict each other about a share; nobody can tell who is right",)
    assert site["a"].state().excluded == ()


def test_an_accusation_after_the_upload_is_refused(new_federation: NewFederation, serve: Serve) -> None:
    _, seats = begin(new_federation, serve)
    drive(seats, STEPS[:2])
    seats[0].upload()
    with pytest.raises(ProblemError) as caught:
        seats[0].post("accusations", Accusation(id="a", body=b"x", signature=bytes(64)))
    assert caught.value.code == "conflicting-message"


def test_a_newer_roster_admits_again(new_federation: NewFederation, serve: Serve) -> None:
    site, seats = begin(new_federation, serve)
    drive(seats, ["join"])
    drive(seats[:3], ["share"])
    spoil(seats[3], with_items(SPOILED["garbage"]))
    accuse(seats[0])
    state = until(site, lambda state: state.attempt == 1)
    assert [one.member for one in state.excluded] == ["d"]
    site.federation.install()
    state = until(site, lambda state: state.attempt == 2)
    assert state.excluded == ()
    seats = seats_in(site, state)
    drive(seats)
    check_part(site, 0, seats)
