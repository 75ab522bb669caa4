"""Members who drop out in every phase: the sum is the survivors', or the next attempt begins."""

from __future__ import annotations

from typing import Any

import pytest
from tests.aggregator.support.driver import STEPS, ProblemError, Seat, drive, take_seats
from tests.aggregator.support.sites import NewFederation, Serve, Site
from tests.aggregator.support.watching import check_part, first_state, until

from fedddpm_protocol.agreement.roster import Release
from fedddpm_protocol.session.spent import usable_release
from fedddpm_protocol.wire.messages import Confirmations, RevealedShare, Unmask, UnmaskBody
from fedddpm_protocol.wire.phases import Phase

pytestmark = pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)  # its subject is not the database

SHORT_S = 4.0


def seats_of(site: Site) -> list[Seat]:
    return take_seats(site.institutions.values(), site.federation.roster, first_state(site), "decoder")


@pytest.mark.parametrize("silent_from", [1, 2, 3, 4], ids=STEPS[1:])
def test_one_of_four_falls_silent(new_federation: NewFederation, serve: Serve, silent_from: int) -> None:
    federation = new_federation()
    short: dict[str, Any] = {f"{phase}_s": SHORT_S for phase in ("shares", "masked", "confirm", "unmask")}
    federation.start_run(rounds=1, **short)
    site = serve(federation)
    seats = seats_of(site)
    for place, step in enumerate(STEPS):
        drive(seats if place < silent_from else seats[:3], [step])
    uploaded = seats if silent_from > STEPS.index("upload") else seats[:3]
    check_part(site, 0, uploaded)


def test_everybody_is_waited_for_until_the_duration_only(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1, join_s=SHORT_S)
    site = serve(federation)
    seats = seats_of(site)[:3]
    drive(seats)
    check_part(site, 0, seats)


def test_too_few_joins_wait_and_say_who_is_missing(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1, join_s=0.2)
    site = serve(federation)
    seats = seats_of(site)
    drive(seats[:2], ["join"])
    state = until(site, lambda state: state.sessions["decoder"].reason is not None)
    assert state.sessions["decoder"].phase is Phase.JOIN
    assert "Not heard of: c, d" in (state.sessions["decoder"].reason or "")
    drive(seats[2:3], ["join"])  # the third is enough, now that the duration is over
    drive(seats[:3], STEPS[1:])
    check_part(site, 0, seats[:3])


def test_two_lost_uploads_end_the_attempt_and_the_next_one_works(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1, masked_s=SHORT_S)
    site = serve(federation)
    drive(seats_of(site), ["join", "share"])
    state = until(site, lambda state: state.attempt == 1)
    assert state.round == 0
    seats = seats_of(site)
    drive(seats)
    check_part(site, 0, seats)


def test_a_member_that_joins_again_is_not_waited_for(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    seats = seats_of(site)
    drive(seats, ["join", "share"])
    drive(seats[:3], ["upload"])
    (again,) = [seat for seat in seats_of(site) if seat.name == "d"]
    with pytest.raises(ProblemError) as refusal:
        again.join(seq=2)
    assert (refusal.value.status, refusal.value.code) == (410, "phase-over")
    drive(seats[:3], ["confirm", "unmask"])
    check_part(site, 0, seats[:3])


def spend_on_abc(site: Site) -> None:
    """Attempt 0 over a, b, c dies in UNMASK: a and b have answered, c has not."""
    seats = seats_of(site)
    drive(seats, ["join", "share"])
    drive(seats[:3], ["upload", "confirm"])
    drive(seats[:2], ["unmask"])
    until(site, lambda state: state.attempt == 1)


def rejoin(site: Site, names: str, recorded: tuple[str, ...], spent: str = "ab") -> list[Seat]:
    """Seats of the current attempt; those in ``spent`` name the recorded survivors."""
    state, roster = first_state(site), site.federation.roster
    chosen = []
    for name in names:
        known = recorded if name in spent else ()
        chosen += take_seats([site[name]], roster, state, "decoder", recorded_u3=known)
    return chosen


def test_spent_members_go_on_only_with_the_same_survivors(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1, masked_s=SHORT_S, unmask_s=SHORT_S)
    site = serve(federation)
    spend_on_abc(site)
    seats = rejoin(site, "abcd", ("a", "b", "c"))
    drive(seats, ["join"])
    drive(seats[:3], STEPS[1:])
    check_part(site, 0, seats[:3])


def test_a_spent_stall_is_named_and_released_by_the_root(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1, join_s=SHORT_S, masked_s=SHORT_S, unmask_s=SHORT_S)
    site = serve(federation)
    spend_on_abc(site)
    drive(rejoin(site, "abd", ("a", "b", "c")), ["join"])
    state = until(site, lambda state: state.status == "stalled")
    assert "a, b, c" in (state.reason or "")
    assert "release" in (state.reason or "")
    spec = bytes.fromhex(base_of(site))
    release = Release(spec, "decoder", ("a", "b", "c"), ("a", "b", "d"))
    roster = federation.install(releases=(release,))
    until(site, lambda state: state.attempt == 2)
    state = first_state(site)
    seats = []
    for name in "abd":
        allowed = usable_release(("a", "b", "c"), roster, spec, "decoder", ()) if name in "ab" else None
        seats += take_seats([site[name]], roster, state, "decoder", release=allowed)
    drive(seats)
    check_part(site, 0, seats)


def test_a_stall_by_a_first_model_that_is_not_new_says_so(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1, join_s=SHORT_S)
    site = serve(federation)
    drive(rejoin(site, "abd", ("a", "b", "c")), ["join"])
    state = until(site, lambda state: state.status == "stalled")
    assert "spent on the sum of a, b, c in an earlier run" in (state.reason or "")
    assert "fedddpm init-model --seed" in (state.reason or "")
    assert "release" not in (state.reason or "")


def base_of(site: Site) -> str:
    (seat, *_) = seats_of(site)
    return str(seat.spec.base_model_hash.hex())


def lie(seat: Seat) -> None:
    """An UNMASK, properly signed, whose shares are wrong."""
    seat.wait_for(Phase.UNMASK)
    confirmations = Confirmations.model_validate_json(seat.get("confirmations"))
    honest = seat.machine.receive_confirmations(confirmations.confirmations, lambda record: None)
    body = honest.parse()
    wrong = {member: RevealedShare(share.kind, bytes(32), share.nonce) for member, share in body.revealed.items()}
    forged = UnmaskBody(body.session_id, body.hu3, wrong).encode()
    seat.post("unmask", Unmask(id=seat.name, body=forged, signature=seat.institution.key.sign("unmask", forged)))


def test_wrong_shares_are_left_out_while_enough_are_right(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()  # t = 3 of 4
    federation.start_run(rounds=1)
    site = serve(federation)
    seats = seats_of(site)
    drive(seats, STEPS[:4])
    lie(seats[0])
    drive(seats[1:], ["unmask"])
    check_part(site, 0, seats)


def test_too_few_right_shares_end_the_attempt_without_a_sum(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    seats = seats_of(site)
    drive(seats, STEPS[:4])
    lie(seats[0])
    lie(seats[1])
    drive(seats[2:], ["unmask"])
    state = until(site, lambda state: state.attempt == 1)
    assert state.results == 0
