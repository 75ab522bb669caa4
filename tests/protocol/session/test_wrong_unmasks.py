"""UNMASK and opening: each wrong message raises its own error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.protocol.support.faults import flip, identity
from tests.protocol.support.sessions import (
    identity_of,
    inbox_of,
    inputs_for,
    make_participants,
    make_plan,
    make_roster,
    mask_all,
)
from tests.protocol.test_vectors import Replay

from fedddpm_protocol.agreement.chunks import chunk_bytes, chunk_span
from fedddpm_protocol.errors import (
    CommitmentError,
    ConflictError,
    MalformedError,
    SignatureError,
    SurvivorsError,
)
from fedddpm_protocol.session.coordinator import recover
from fedddpm_protocol.session.spent import SpentLog
from fedddpm_protocol.wire.messages import RevealedShare, Unmask, UnmaskBody

NOTHING = (bytes(32), bytes(32))  # a share and its nonce


def resigned(replay: Replay, name: str, body: bytes) -> Unmask:
    return Unmask(id=name, body=body, signature=identity(replay, name).sign("unmask", body))


def changed_bodies(good: UnmaskBody, dropped: str) -> dict[str, tuple[bytes, type[Exception]]]:
    kept = {member: share for member, share in good.revealed.items() if member != dropped}
    survivor = next(iter(kept))
    raw = good.encode()
    return {
        "other-session": (replace(good, session_id=bytes(32)).encode(), ConflictError),
        "other-survivors": (replace(good, hu3=bytes(32)).encode(), ConflictError),
        "one-missing": (replace(good, revealed=kept).encode(), MalformedError),
        "a-stranger": (
            replace(good, revealed={**good.revealed, "x": RevealedShare("self_mask", *NOTHING)}).encode(),
            MalformedError,
        ),
        "wrong-kind": (
            replace(good, revealed={**good.revealed, survivor: RevealedShare("mask_sk", *NOTHING)}).encode(),
            MalformedError,
        ),
        "self-mask-of-dropped": (
            replace(good, revealed={**good.revealed, dropped: RevealedShare("self_mask", *NOTHING)}).encode(),
            MalformedError,
        ),
        "trailing": (raw + b"\0", MalformedError),
        "truncated": (raw[:-1], MalformedError),
    }


@pytest.mark.parametrize(
    "case",
    [
        *("other-session", "other-survivors", "one-missing", "a-stranger", "wrong-kind", "self-mask-of-dropped"),
        *("trailing", "truncated"),
    ],
)
def test_unmasks_that_reveal_something_else(replay: Replay, case: str) -> None:
    replay.to_unmasks()
    name = replay.case["u3"][0]
    dropped = next(iter(set(replay.case["u2"]) - set(replay.case["u3"])))
    body, error = changed_bodies(replay.unmasks[name].parse(), dropped)[case]
    with pytest.raises(error) as caught:
        replay.survivors.verify_unmask(resigned(replay, name, body))
    assert type(caught.value) is error


def test_a_flipped_bit_anywhere_in_an_unmask(replay: Replay) -> None:
    replay.to_unmasks()
    good = replay.unmasks[replay.case["u3"][0]]
    for position in range(len(good.body)):
        with pytest.raises(SignatureError):
            replay.survivors.verify_unmask(good.model_copy(update={"body": flip(good.body, position)}))
    for position in range(64):
        with pytest.raises(SignatureError):
            replay.survivors.verify_unmask(good.model_copy(update={"signature": flip(good.signature, position)}))


def test_an_unmask_from_outside_the_survivors(replay: Replay) -> None:
    replay.to_unmasks()
    body = replay.unmasks[replay.case["u3"][0]].body
    for name in set(replay.case["u1"]) - set(replay.case["u3"]):
        with pytest.raises(SurvivorsError):
            replay.survivors.verify_unmask(resigned(replay, name, body))


def test_opening_needs_the_threshold(replay: Replay) -> None:
    replay.to_unmasks()
    unmasks = list(replay.unmasks.values())
    for few in (unmasks[:2], [unmasks[0]] * 3, []):
        with pytest.raises(CommitmentError):
            recover(replay.survivors, few)


def opened_with_liars(n: int, liars: int, answers: int) -> None:
    """A session of ``n`` in which one member drops after its shares and ``liars`` answers hold noise."""
    roster = make_roster(n)
    plan = make_plan(roster)
    machines = make_participants(roster, plan)
    joins = [machine.join(1) for machine in machines.values()]
    shares = {name: machine.receive_cohort(joins) for name, machine in machines.items()}
    alive = roster.ids[:-1]
    uploads = {}
    for name in alive:
        machines[name].receive_shares(*inbox_of(name, shares.values()))
        uploads[name] = mask_all(machines[name], inputs_for(name, plan.segments))
        machines[name].finish_upload()
    sharing = machines["site-0"]._sharing
    assert sharing is not None
    survivors = sharing.survivors({name: machines[name]._upload_digest for name in alive})
    confirmations = [machines[name].receive_survivors(survivors.message.survivors) for name in alive]
    unmasks = [machines[name].receive_confirmations(confirmations, SpentLog().commit) for name in alive][:answers]
    for index in range(liars):
        body = unmasks[index].parse()
        noise = {m: RevealedShare(s.kind, flip(s.share, index), s.nonce) for m, s in body.revealed.items()}
        raw = replace(body, revealed=noise).encode()
        unmasks[index] = Unmask(id=alive[index], body=raw, signature=identity_of(index).sign("unmask", raw))
    masks = recover(survivors, unmasks)
    segment = plan.segments[0]
    _, count = chunk_span(segment, plan.chunk_coordinates, 0)
    opened = masks.open_chunk(segment, 0, [uploads[name]["part"][0] for name in alive])
    total = sum(inputs_for(name, [segment])["part"][:count].astype(np.uint64) for name in alive)
    assert [int(word) for word in opened] == [int(value) % 2**32 for value in np.asarray(total)]


@pytest.mark.parametrize(("n", "answers", "liars"), [(4, 3, 0), (6, 5, 1), (7, 5, 1), (7, 6, 2), (9, 8, 3), (10, 8, 2)])
def test_wrong_shares_are_left_out_as_long_as_a_threshold_is_right(n: int, answers: int, liars: int) -> None:
    opened_with_liars(n, liars, answers)


@pytest.mark.parametrize(("n", "answers", "liars"), [(4, 3, 1), (6, 4, 1), (7, 5, 2), (7, 6, 3), (9, 8, 4)])
def test_too_many_wrong_shares_open_nothing(n: int, answers: int, liars: int) -> None:
    with pytest.raises(CommitmentError, match=r"are as they were dealt; wrong: site-0"):
        opened_with_liars(n, liars, answers)


@pytest.mark.parametrize("change", ["longer", "shorter", "one-missing", "one-twice", "none"])
def test_chunks_of_the_wrong_length_or_number_are_not_summed(replay: Replay, change: str) -> None:
    replay.to_unmasks()
    masks = recover(replay.survivors, list(replay.unmasks.values()))
    segment = replay.plan.segments[0]
    chunks = [replay.uploads[name][segment.name][0] for name in replay.case["u3"]]
    assert {len(chunk) for chunk in chunks} == {chunk_bytes(segment, 4, 0)}
    wrong = {
        "longer": [chunks[0] + b"\0", *chunks[1:]],
        "shorter": [chunks[0][:-1], *chunks[1:]],
        "one-missing": chunks[1:],
        "one-twice": [*chunks, chunks[0]],
        "none": [],
    }[change]
    with pytest.raises(MalformedError):
        masks.open_chunk(segment, 0, wrong)
    with pytest.raises(MalformedError):
        masks.open_chunk(segment, 10**6, chunks)


def test_an_altered_upload_opens_to_something_else(replay: Replay) -> None:
    """The digest of every chunk is confirmed before anything is revealed, because the masks alone do not protect it."""
    replay.to_unmasks()
    masks = recover(replay.survivors, list(replay.unmasks.values()))
    segment = replay.plan.segments[0]
    chunks = [replay.uploads[name][segment.name][0] for name in replay.case["u3"]]
    opened = masks.open_chunk(segment, 0, chunks)
    assert (masks.open_chunk(segment, 0, [flip(chunks[0], 0), *chunks[1:]]) != opened).any()
