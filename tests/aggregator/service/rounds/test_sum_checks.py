"""What a sum was made of is shown to its survivors once it is published, to nobody else and of nobody else."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import pytest
from tests.aggregator.support.driver import STEPS, ProblemError, Seat, drive, take_seats
from tests.aggregator.support.sites import NewFederation, Serve, Site
from tests.aggregator.support.watching import first_state, result_of, until

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.publishing import scrub
from fedddpm_aggregator.service.verification.verify_history import verify_history
from fedddpm_protocol.agreement.documents import sign_spec
from fedddpm_protocol.agreement.roster import sign_roster
from fedddpm_protocol.session.checked_sum import check_shown, confirmed_survivors
from fedddpm_protocol.wire.api import CohortReply, ShareInbox, UploadDigests
from fedddpm_protocol.wire.messages import Confirmations, Survivors, Unmasks
from fedddpm_protocol.wire.sum_proofs import ConfirmedSum, ShownSum

pytestmark = pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)  # its subject is not the database
SHOWN = ("unmasks", "uploads/a", "uploads/a/decoder/0")


def seats_of(site: Site, rounds_done: int = 0) -> list[Seat]:
    return take_seats(site.institutions.values(), site.federation.roster, first_state(site, rounds_done), "decoder")


def refusal(seat: Seat, path: str) -> tuple[int, str]:
    with pytest.raises(ProblemError) as caught:
        seat.get(path)
    return caught.value.status, caught.value.code


def round_of_three(
    new_federation: NewFederation, serve: Serve, rounds: int = 1, **changes: Any
) -> tuple[Site, list[Seat]]:
    """A published round of a, b and c; d dropped when all of its chunks were there, but before it said so."""
    federation = new_federation()
    federation.start_run(rounds=rounds, masked_s=4.0, **changes)
    site = serve(federation)
    seats = seats_of(site)
    drive(seats, STEPS[:2])
    drive(seats[:3], ["upload"])
    seats[3].mask()
    for segment, index in seats[3].chunks:
        seats[3].put(segment, index)
    drive(seats[:3], STEPS[3:])
    result_of(site, 0)
    return site, seats


def test_only_survivors_are_shown_and_only_survivors_see_it(new_federation: NewFederation, serve: Serve) -> None:
    _, (a, b, c, d) = round_of_three(new_federation, serve)
    for path in SHOWN:
        assert refusal(d, path) == (403, "not-yours")
        b.get(path)
    assert b.get("uploads/a/decoder/0") == a.chunks["decoder", 0]
    assert c.get("uploads/b/decoder.weights/0") == b.chunks["decoder.weights", 0]
    for member in ("d", "nobody"):
        assert refusal(c, f"uploads/{member}") == (404, "not-found")
        assert refusal(c, f"uploads/{member}/decoder/0") == (404, "not-found")
    assert refusal(c, "uploads/a/encoder/0") == (422, "malformed")
    assert refusal(c, "uploads/a/decoder/99") == (422, "malformed")
    assert {unmask.id for unmask in Unmasks.model_validate_json(a.get("unmasks")).unmasks} == {"a", "b", "c"}


def test_a_survivor_opens_every_chunk_itself(new_federation: NewFederation, serve: Serve) -> None:
    site, (a, *_) = round_of_three(new_federation, serve)
    part = result_of(site, 0).parts[0]
    with site.federation.context() as ctx:
        confirmed = ConfirmedSum(
            roster=sign_roster(site.federation.roster, site.federation.root),
            spec=sign_spec(a.spec, ctx.key),
            session="decoder",
            joins=CohortReply.model_validate_json(a.get("cohort")).joins,
            deals=ShareInbox.model_validate_json(a.get("shares")).deals,
            survivors=Survivors.model_validate_json(a.get("survivors")).survivors,
            confirmations=Confirmations.model_validate_json(a.get("confirmations")).confirmations,
        )
    survivors = confirmed_survivors(confirmed, site.federation.roster, a.spec)
    uploads = {m: UploadDigests.model_validate_json(a.get(f"uploads/{m}")).chunks for m in survivors.ids}
    opened = site["a"].send("GET", "/v1/results/run-1/0/opened/decoder").content
    starts = range(0, len(opened), 64)  # bytes of 16 words
    digests = tuple(hashlib.sha256(opened[start : start + 64]).digest() for start in starts)
    shown = ShownSum(unmasks=Unmasks.model_validate_json(a.get("unmasks")).unmasks, uploads=uploads, opened=digests)
    checked = check_shown(survivors, part, shown)
    for segment, count in (("decoder", checked.chunks), ("decoder.weights", 1)):
        for index in range(count):
            words = {member: a.get(f"uploads/{member}/{segment}/{index}") for member in survivors.ids}
            checked.require_chunk(segment, index, words)


def test_nothing_is_shown_before_the_round_is_published(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    seats = seats_of(serve(federation))
    for step in STEPS[:4]:
        drive(seats, [step])
        for path in SHOWN:
            assert refusal(seats[1], path) == (409, "wrong-phase")


def test_nothing_is_shown_of_an_attempt_that_gave_no_result(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1, unmask_s=2.0)
    site = serve(federation)
    seats = seats_of(site)
    drive(seats, STEPS[:4])
    until(site, lambda state: state.attempt == 1)
    for path in SHOWN:
        assert refusal(seats[1], path) == (410, "phase-over")


def test_a_sum_that_was_opened_and_not_published_is_not_shown(new_federation: NewFederation, serve: Serve) -> None:
    """As USPLIT's, while other parts are open, or of a run that was ended in between."""
    site, seats = round_of_three(new_federation, serve)
    for status in ("active", "failed"):
        with site.federation.context() as ctx, ctx.transaction() as db:
            attempt = queries.attempt_by_spec(db, seats[0].spec.hash.hex(), lock=True)
            assert attempt is not None
            attempt.status = status
        for path in SHOWN:
            assert refusal(seats[1], path) == (409, "wrong-phase")


def test_disclosed_counts_are_not_shown_to_others(new_federation: NewFederation, serve: Serve) -> None:
    _, (_, b, *_) = round_of_three(new_federation, serve, weighting="disclosed")
    assert b"samples" not in b.get("uploads/a")


# --- how long ---------------------------------------------------------------------------------------------------------


def folders(ctx: Context) -> set[str]:
    return set(ctx.blobs.folders("uploads"))


def test_uploads_stay_until_the_next_round_has_closed_masked(new_federation: NewFederation, serve: Serve) -> None:
    site, first = round_of_three(new_federation, serve, rounds=2)
    one = first[0].spec.hash.hex()
    second = seats_of(site, 1)
    two = second[0].spec.hash.hex()
    with site.federation.context() as ctx:
        drive(second, STEPS[:3])
        scrub(ctx)
        assert one in folders(ctx)
        drive(second, STEPS[3:4])
        scrub(ctx)
        assert folders(ctx) == {two}
        assert refusal(first[0], "uploads/b/decoder/0") == (410, "removed")
        first[0].get("uploads/b")  # digests and answers stay, as all messages do
        drive(second, STEPS[4:])
        result_of(site, 1)
        verify_history(ctx)
        scrub(ctx)
        assert folders(ctx) == {two}  # the run is over: for a day


@pytest.mark.parametrize("keep_s", ["0", "1e-9"])
def test_the_last_uploads_go_after_the_time_that_is_set(
    new_federation: NewFederation, serve: Serve, monkeypatch: pytest.MonkeyPatch, keep_s: str
) -> None:
    monkeypatch.setenv("FEDDDPM_AGGREGATOR_KEEP_UPLOADS_S", keep_s)
    site, seats = round_of_three(new_federation, serve)
    with site.federation.context() as ctx:
        scrub(ctx)
        assert folders(ctx) == set()
        with ctx.database.read() as db:
            assert db.query(AttemptRow).one().scrubbed
    assert refusal(seats[0], "uploads/b/decoder/0") == (410, "removed")


def test_a_damaged_chunk_is_said_to_be_one(new_federation: NewFederation, serve: Serve) -> None:
    site, seats = round_of_three(new_federation, serve)
    path = f"uploads/{seats[0].spec.hash.hex()}/decoder/b/decoder/0"
    with site.federation.context() as ctx:
        ctx.blobs.remove(path)
    assert refusal(seats[0], "uploads/b/decoder/0") == (404, "not-found")
    assert partial(seats[0].get, "uploads/c/decoder/0")() == seats[2].chunks["decoder", 0]
