"""Resends, conflicts, wrong phases, wrong speakers, wrong sizes: each its own answer, and the sum stays right."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from sqlalchemy import func, select
from tests.aggregator.support.driver import STEPS, ProblemError, Seat, drive, take_seats
from tests.aggregator.support.sites import NewFederation, Serve, Site
from tests.aggregator.support.watching import check_part, first_state

from fedddpm_aggregator.db.tables import EvidenceRow
from fedddpm_protocol.wire.messages import Confirmation

pytestmark = pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)  # its subject is not the database


def problem_of(action: Callable[[], object]) -> tuple[int, str]:
    with pytest.raises(ProblemError) as caught:
        action()
    return caught.value.status, caught.value.code


@pytest.fixture
def site(new_federation: NewFederation, serve: Serve) -> Site:
    federation = new_federation()
    federation.start_run(rounds=1)
    return serve(federation)


def seated(site: Site) -> list[Seat]:
    return take_seats(site.institutions.values(), site.federation.roster, first_state(site), "decoder")


def evidence(site: Site) -> int:
    with site.federation.context() as ctx, ctx.database.read() as db:
        return db.scalar(select(func.count()).select_from(EvidenceRow)) or 0


def test_every_message_may_be_sent_again(site: Site) -> None:
    seats = seated(site)
    first = seats[0]
    for step in STEPS:
        drive(seats, [step])
        if step == "join":
            assert first.post("joins", first.join_message).json()["outcome"] == "unchanged"
        elif step == "share":
            first.post("shares", first.shares_message)
        elif step == "upload":
            first.post("upload", first.manifest)
            first.put("decoder", 0)
        elif step == "confirm":
            first.post("confirmations", first.confirmation)
    check_part(site, 0, seats)
    first.post("unmask", first.unmask_message)  # also after the round is published
    first.put("decoder", 0)
    assert evidence(site) == 0


def test_join_follows_the_sequence_number(site: Site) -> None:
    seats = seated(site)
    assert seats[0].join(seq=5) == "accepted"
    later = seated(site)[0]
    assert later.join(seq=6) == "replaced"
    assert seated(site)[0].join(seq=6) == "stale"
    assert seated(site)[0].join(seq=1) == "stale"
    seats[0] = later
    drive(seats[1:], ["join"])
    drive(seats, STEPS[1:])
    check_part(site, 0, seats)


def test_steps_before_their_time_are_refused(site: Site) -> None:
    seats = seated(site)
    drive(seats[:2], ["join"])
    for path in ("cohort", "shares", "survivors", "confirmations", "upload"):
        assert problem_of(partial(seats[0].get, path)) == (409, "wrong-phase")
    assert problem_of(lambda: seats[0].put("decoder", 0, b"x")) == (409, "wrong-phase")


def test_other_content_for_a_chunk_is_kept_as_evidence(site: Site) -> None:
    seats = seated(site)
    drive(seats, ["join", "share"])
    seats[0].mask()
    seats[0].put("decoder", 0)
    other = bytes(len(seats[0].chunks["decoder", 0]))
    assert problem_of(lambda: seats[0].put("decoder", 0, other)) == (409, "conflicting-message")
    assert evidence(site) == 1
    for segment, index in seats[0].chunks:
        seats[0].put(segment, index)
    seats[0].finish()
    drive(seats[1:], ["upload"])
    drive(seats, ["confirm", "unmask"])
    check_part(site, 0, seats)


def test_another_message_for_a_step_is_refused_and_kept(site: Site) -> None:
    seats = seated(site)
    drive(seats, ["join"])
    drive(seats[:1], ["share"])
    item = seats[0].shares_message.items[0]
    changed = item.model_copy(update={"sealed": bytes(156)})
    shares = seats[0].shares_message.model_copy(update={"items": (changed, *seats[0].shares_message.items[1:])})
    assert problem_of(lambda: seats[0].post("shares", shares)) == (409, "conflicting-message")
    assert evidence(site) == 1
    drive(seats[1:], ["share"])
    drive(seats, STEPS[2:])
    check_part(site, 0, seats)


def test_an_upload_after_the_survivors_are_fixed_is_gone(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1, masked_s=6.0)
    site = serve(federation)
    seats = seated(site)
    drive(seats, ["join", "share"])
    late = seats[3]
    late.mask()
    late.put("decoder", 0)
    drive(seats[:3], ["upload", "confirm"])
    late.put("decoder", 0)  # a repeat of an accepted chunk
    assert problem_of(lambda: late.put("decoder", 1)) == (410, "phase-over")
    assert problem_of(late.finish) == (410, "phase-over")
    drive(seats[:3], ["unmask"])
    check_part(site, 0, seats[:3])


def test_an_incomplete_upload_cannot_be_completed(site: Site) -> None:
    seats = seated(site)
    drive(seats, ["join", "share"])
    seats[0].mask()
    seats[0].put("decoder", 0)
    assert problem_of(seats[0].finish) == (409, "conflicting-message")


@pytest.mark.parametrize("change", [-1, 1, -10_000])
def test_a_chunk_of_another_size_is_refused(site: Site, change: int) -> None:
    seats = seated(site)
    drive(seats, ["join", "share"])
    seats[0].mask()
    right = seats[0].chunks["decoder", 0]
    wrong = (right + b"\0")[: max(0, len(right) + change)]
    assert problem_of(lambda: seats[0].put("decoder", 0, wrong)) == (422, "malformed")
    assert problem_of(lambda: seats[0].put("decoder", 99, right)) == (422, "malformed")
    assert problem_of(lambda: seats[0].put("elsewhere", 0, right)) == (422, "malformed")


def test_nobody_speaks_for_another(site: Site) -> None:
    seats = seated(site)
    join = seats[0].machine.join(1)
    assert problem_of(lambda: seats[1].post("joins", join)) == (403, "not-yours")
    confirmation = Confirmation(id="a", signature=bytes(64))
    assert problem_of(lambda: seats[1].post("confirmations", confirmation)) == (403, "not-yours")


def test_a_session_key_of_another_member_is_refused(site: Site) -> None:
    one, two = seated(site)[:2]
    keys = iter([b"\x01" * 32, b"\x02" * 32, b"\x03" * 32, b"\x04" * 32])
    one.machine._random = lambda count: next(keys)
    one.join()
    keys = iter([b"\x01" * 32, b"\x05" * 32, b"\x06" * 32, b"\x07" * 32])
    two.machine._random = lambda count: next(keys)
    assert problem_of(two.join) == (409, "duplicate")


def test_confirmations_and_unmasks_must_hold(site: Site) -> None:
    seats = seated(site)
    drive(seats, ["join", "share", "upload"])
    forged = Confirmation(id="a", signature=bytes(64))
    assert problem_of(lambda: seats[0].post("confirmations", forged)) == (403, "bad-signature")
    drive(seats, ["confirm"])
    seats[0].unmask()
    seats[1].unmask()
    stolen = seats[0].unmask_message.model_copy(update={"id": "c"})
    assert problem_of(lambda: seats[2].post("unmask", stolen)) == (403, "bad-signature")
    drive(seats[2:], ["unmask"])
    check_part(site, 0, seats)


def test_unknown_things_are_not_found(site: Site) -> None:
    a = site["a"]
    nowhere = "00" * 32
    assert problem_of(lambda: a.send("GET", f"/v1/sessions/{nowhere}/decoder/cohort")) == (404, "not-found")
    assert problem_of(lambda: a.send("GET", f"/v1/models/{nowhere}")) == (404, "not-found")
    assert problem_of(lambda: a.send("GET", "/v1/results?run=none")) == (404, "not-found")
    assert problem_of(lambda: a.send("GET", "/v1/results/run-1/0/opened/decoder")) == (404, "not-found")
    assert problem_of(lambda: a.send("GET", "/v1/nothing")) == (404, "not-found")
    assert problem_of(lambda: a.send("DELETE", "/v1/roster")) == (405, "method-not-allowed")
    assert problem_of(lambda: a.send("GET", "/v1/models/xyz")) == (422, "validation")
    assert problem_of(lambda: a.send("GET", "/v1/state?wait=1000")) == (422, "validation")


def test_bodies_are_closed_to_unknown_and_large_content(site: Site) -> None:
    (seat, *_) = seated(site)
    join = seat.machine.join(1)
    extra = join.model_dump_json()[:-1].encode() + b', "more": 1}'
    path = f"{seat.path}/joins"

    def post(content: bytes) -> tuple[int, str]:
        request = site["a"].signed("POST", path, content, {"content-type": "application/json"})
        document = site["a"].http.send(request).json()
        return document["status"], document["code"]

    assert post(extra) == (422, "validation")
    assert post(b"{") == (422, "validation")
    assert post(b"x" * (2 * 2**20 + 1)) == (413, "too-large")


def test_models_have_an_etag_and_ranges(site: Site) -> None:
    state = first_state(site)
    seat = seated(site)[0]
    assert state.spec is not None
    path = f"/v1/models/{seat.spec.initial_model_hash.hex()}"
    whole = site["a"].send("GET", path)
    assert whole.headers["etag"] == f'"{seat.spec.initial_model_hash.hex()}"'
    part = site["a"].http.send(site["a"].signed("GET", path, headers={"range": "bytes=10-19"}))
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    again = site["a"].http.send(site["a"].signed("GET", path, headers={"if-none-match": whole.headers["etag"]}))
    assert again.status_code == 304


def test_the_interface_is_described_with_examples(site: Site) -> None:
    document = site["a"].http.get("/openapi.json").json()
    posts = [
        methods["post"]
        for path, methods in document["paths"].items()
        if "post" in methods and path.startswith("/v1/sessions/")
    ]
    assert len(posts) == 6
    for post in posts:
        content = post["requestBody"]["content"]["application/json"]
        assert content["schema"].get("examples") or content.get("examples"), post["summary"]
        assert {"401", "403", "409", "410", "413", "422", "507"} <= set(post["responses"])
