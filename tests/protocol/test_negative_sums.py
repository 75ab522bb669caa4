"""Uploads, survivors, confirmations, UNMASK and opening: each wrong message raises its own error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.protocol.faults import flip, identity, is_forgotten
from tests.protocol.sessions import (
    Session,
    identity_of,
    inputs_for,
    make_participants,
    make_plan,
    make_roster,
    mask_all,
)
from tests.protocol.test_vectors import CASES, Replay

from fedddpm_protocol.agreement.chunks import chunk_bytes, chunk_span, segment_digest
from fedddpm_protocol.agreement.roster import Release
from fedddpm_protocol.errors import (
    CohortTooSmallError,
    CommitmentError,
    ConflictError,
    EncodingError,
    MalformedError,
    MaskReuseError,
    PhaseError,
    ReleaseError,
    SignatureError,
    SpentError,
    SurvivorsError,
    UnknownMemberError,
)
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.session.cohort import samples_message
from fedddpm_protocol.session.coordinator import recover
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.spent import SpentLog, SpentRecord, check_spent, usable_release
from fedddpm_protocol.wire.messages import Confirmation, RevealedShare, Survivor, Unmask, UnmaskBody, UploadManifest
from fedddpm_protocol.wire.phases import CLIENT_STEPS, ClientState, Step

ANY_UNMASK = Unmask(id="site-0", body=b"x", signature=bytes(64))


@pytest.fixture
def replay() -> Replay:
    """Five members of the known answers: U1 has five, U2 four, U3 three; t = 3."""
    return Replay(CASES[1])


# --- masking and upload ----------------------------------------------------------------------------------------------


def masking_machine(**plan: Any) -> Participant:
    roster = make_roster(3)
    machines = make_participants(roster, make_plan(roster, **plan))
    joins = [machine.join(1) for machine in machines.values()]
    shares = {name: machine.receive_cohort(joins) for name, machine in machines.items()}
    machines["site-0"].receive_shares([i for s in shares.values() for i in s.items if i.recipient == "site-0"])
    return machines["site-0"]


def test_the_same_mask_never_covers_two_contents() -> None:
    machine = masking_machine()
    first = machine.mask_chunk("part", 0, np.arange(8, dtype=np.uint32))
    assert machine.mask_chunk("part", 0, np.arange(8, dtype=np.uint32)) == first
    with pytest.raises(MaskReuseError):
        machine.mask_chunk("part", 0, np.arange(1, 9, dtype=np.uint32))
    assert is_forgotten(machine)
    with pytest.raises(PhaseError):
        machine.mask_chunk("part", 0, np.arange(8, dtype=np.uint32))


@pytest.mark.parametrize(
    ("words", "index"),
    [
        (np.zeros(7, np.uint32), 0),
        (np.zeros(9, np.uint32), 0),
        (np.zeros(8, np.uint64), 0),
        (np.zeros(8, np.int32), 0),
        (np.zeros((1, 8), np.uint32), 0),
        (np.zeros(8, np.uint32), 2),  # the last chunk has four
    ],
)
def test_chunks_of_another_size_or_type(words: Any, index: int) -> None:
    with pytest.raises(EncodingError):
        masking_machine().mask_chunk("part", index, words)


@pytest.mark.parametrize(("segment", "index"), [("part", 3), ("part", -1), ("other", 0), ("part.weights", 1)])
def test_chunks_that_do_not_exist(segment: str, index: int) -> None:
    with pytest.raises(MalformedError):
        masking_machine().mask_chunk(segment, index, np.zeros(8, np.uint32))


def test_an_upload_needs_all_chunks() -> None:
    machine = masking_machine()
    machine.mask_chunk("part", 0, np.zeros(8, np.uint32))
    with pytest.raises(EncodingError, match="never masked"):
        machine.finish_upload()


@pytest.mark.parametrize(("disclosed", "samples"), [(False, 5), (True, None)])
def test_counts_are_sent_exactly_where_they_are_disclosed(disclosed: bool, samples: int | None) -> None:
    machine = masking_machine(discloses_samples=disclosed)
    mask_all(machine, inputs_for("site-0", machine.plan.segments))
    with pytest.raises(EncodingError, match="exactly where"):
        machine.finish_upload(samples)


def changed_manifests(good: UploadManifest, names: list[str]) -> dict[str, dict[str, Any]]:
    first = names[0]
    chunks = dict(good.chunks)
    return {
        "missing-chunk": {**chunks, first: chunks[first][1:]},
        "extra-chunk": {**chunks, first: (*chunks[first], bytes(32))},
        "short-digest": {**chunks, first: (chunks[first][0][:-1], *chunks[first][1:])},
        "long-digest": {**chunks, first: (chunks[first][0] + b"\0", *chunks[first][1:])},
        "missing-segment": {name: chunks[name] for name in names[1:]},
        "extra-segment": {**chunks, "other": (bytes(32),)},
        "no-chunks": {},
    }


@pytest.mark.parametrize(
    "case",
    [
        *("missing-chunk", "extra-chunk", "short-digest", "long-digest"),
        *("missing-segment", "extra-segment", "no-chunks"),
    ],
)
def test_manifests_that_do_not_fit_the_plan(replay: Replay, case: str) -> None:
    replay.to_uploads()
    name = replay.case["u3"][0]
    chunks = changed_manifests(replay.manifests[name], [s.name for s in replay.plan.segments])[case]
    with pytest.raises(MalformedError):
        replay.sharing.verify_manifest(name, UploadManifest.model_construct(chunks=chunks))


def test_manifests_of_strangers_and_of_members_that_did_not_share(replay: Replay) -> None:
    replay.to_uploads()
    manifest = replay.manifests[replay.case["u3"][0]]
    outside = set(replay.case["u1"]) - set(replay.case["u2"])
    for name in ("stranger", *outside):
        with pytest.raises(UnknownMemberError):
            replay.sharing.verify_manifest(name, manifest)


def test_every_chunk_digest_is_in_the_upload_digest(replay: Replay) -> None:
    replay.to_uploads()
    name = replay.case["u3"][0]
    manifest = replay.manifests[name]
    digests = {replay.sharing.verify_manifest(name, manifest)}
    for segment, chunks in manifest.chunks.items():
        for index, digest in enumerate(chunks):
            changed = {**manifest.chunks, segment: (*chunks[:index], flip(digest), *chunks[index + 1 :])}
            digests.add(replay.sharing.verify_manifest(name, UploadManifest(chunks=changed)))
    assert len(digests) == 1 + sum(len(chunks) for chunks in manifest.chunks.values())
    first = replay.plan.segments[0]
    with pytest.raises(MalformedError):
        segment_digest(first, 8, manifest.chunks[first.name])  # cut at another size


def test_disclosed_counts_are_signed() -> None:
    machine = masking_machine(discloses_samples=True)
    mask_all(machine, inputs_for("site-0", machine.plan.segments))
    manifest = machine.finish_upload(42)
    sharing = machine._sharing
    assert sharing is not None
    for changes in (
        {"samples": 43},
        {"samples_signature": flip(manifest.samples_signature or b"")},
        {"samples_signature": identity_of(1).sign("samples", samples_message(sharing.cohort.session_id, "site-0", 42))},
    ):
        with pytest.raises(SignatureError):
            sharing.verify_manifest("site-0", manifest.model_copy(update=changes))
    for name in ("samples", "samples_signature"):
        with pytest.raises(MalformedError):
            sharing.verify_manifest("site-0", manifest.model_copy(update={name: None}))


def test_hidden_counts_are_not_accepted(replay: Replay) -> None:
    replay.to_uploads()
    name = replay.case["u3"][0]
    with pytest.raises(MalformedError, match="hidden"):
        replay.sharing.verify_manifest(name, replay.manifests[name].model_copy(update={"samples": 5}))


# --- survivors -------------------------------------------------------------------------------------------------------


def announced(replay: Replay) -> tuple[Participant, list[Survivor]]:
    replay.to_uploads()
    digests = {name: replay.sharing.verify_manifest(name, m) for name, m in replay.manifests.items()}
    survivors = replay.sharing.survivors(digests)
    return replay.machines[replay.case["u3"][0]], list(survivors.message.survivors)


def altered_survivors(listed: list[Survivor], outside: str) -> dict[str, tuple[list[Survivor], type[Exception]]]:
    own = listed[0]
    return {
        "own-missing": (listed[1:], SurvivorsError),
        "own-altered": ([Survivor(id=own.id, upload_digest=flip(own.upload_digest)), *listed[1:]], SurvivorsError),
        "own-swapped": ([Survivor(id=own.id, upload_digest=listed[1].upload_digest), *listed[1:]], SurvivorsError),
        "one-twice": ([*listed, listed[1]], SurvivorsError),
        "not-a-sharer": ([*listed, Survivor(id=outside, upload_digest=bytes(32))], SurvivorsError),
        "stranger": ([*listed, Survivor(id="stranger", upload_digest=bytes(32))], SurvivorsError),
        "too-few": (listed[:2], CohortTooSmallError),
        "nobody": ([], SurvivorsError),
    }


@pytest.mark.parametrize(
    "case",
    ["own-missing", "own-altered", "own-swapped", "one-twice", "not-a-sharer", "stranger", "too-few", "nobody"],
)
def test_survivors_that_cannot_be_confirmed(replay: Replay, case: str) -> None:
    machine, listed = announced(replay)
    outside = next(iter(set(replay.case["u1"]) - set(replay.case["u2"])))
    wrong, error = altered_survivors(listed, outside)[case]
    with pytest.raises(error) as caught:
        machine.receive_survivors(wrong)
    assert type(caught.value) is error
    assert is_forgotten(machine)


def test_one_set_of_survivors_for_each_session(replay: Replay) -> None:
    machine, listed = announced(replay)
    machine.receive_survivors(listed)
    with pytest.raises(PhaseError):
        machine.receive_survivors(listed)
    assert is_forgotten(machine)


def test_survivors_below_the_local_policy() -> None:
    roster = make_roster(5)
    drops = {"site-4": "shares"}
    machines = make_participants(roster, make_plan(roster))
    machines |= {"site-0": make_participants(roster, make_plan(roster), floor=5)["site-0"]}
    with pytest.raises(CohortTooSmallError, match="survivors are below this institution"):
        Session(roster, make_plan(roster), machines, drops=drops).run()


def test_survivors_other_than_the_recorded_ones() -> None:
    """The cohort was right, but one of it fell silent: the spent member keeps its share."""
    roster, log = make_roster(5), SpentLog()
    everybody = SpentRecord(b"\x07" * 32, "part", roster.ids, bytes(32), ANY_UNMASK)
    log.commit(everybody)
    machines = make_participants(roster, make_plan(roster), dict.fromkeys(roster.ids, log))
    with pytest.raises(SpentError, match="survivors"):
        Session(roster, make_plan(roster), machines, drops={"site-4": "shares"}).run()


def test_the_aggregator_cannot_build_survivors_out_of_nothing(replay: Replay) -> None:
    replay.to_uploads()
    digests = {name: replay.sharing.verify_manifest(name, m) for name, m in replay.manifests.items()}
    with pytest.raises(SurvivorsError):
        replay.sharing.survivors({**digests, "stranger": bytes(32)})
    with pytest.raises(CohortTooSmallError):
        replay.sharing.survivors(dict(list(digests.items())[:2]))
    with pytest.raises(CohortTooSmallError):
        replay.cohort.sharing(replay.case["u2"][:2])
    with pytest.raises(UnknownMemberError):
        replay.cohort.sharing([*replay.case["u2"], "stranger"])


# --- confirmations ---------------------------------------------------------------------------------------------------


def refuse_confirmations(replay: Replay, confirmations: list[Confirmation], error: type[Exception]) -> Any:
    machine = replay.machines[replay.case["u3"][0]]
    log = SpentLog()
    with pytest.raises(error) as caught:
        machine.receive_confirmations(confirmations, log.commit)
    assert is_forgotten(machine)
    assert log.recorded(replay.plan.base_model_hash, replay.plan.part) == ()  # nothing revealed, nothing spent
    return caught.value


@pytest.mark.parametrize("position", [0, 31, 32, 63])
def test_a_flipped_bit_in_a_confirmation(replay: Replay, position: int) -> None:
    replay.to_survivors()
    given = list(replay.confirmations.values())
    given[1] = Confirmation(id=given[1].id, signature=flip(given[1].signature, position))
    assert refuse_confirmations(replay, given, SignatureError).blame == given[1].id


def test_a_confirmation_of_other_survivors(replay: Replay) -> None:
    """One member was told another digest: its signature is genuine, over another hU3."""
    survivors = replay.to_survivors()
    given = list(replay.confirmations.values())
    other = replace(survivors, digests=(flip(survivors.digests[0]), *survivors.digests[1:]))
    given[2] = Confirmation(id=given[2].id, signature=identity(replay, given[2].id).sign("confirm", other.hu3))
    refuse_confirmations(replay, given, SignatureError)


def test_a_confirmation_under_another_name(replay: Replay) -> None:
    replay.to_survivors()
    given = list(replay.confirmations.values())
    refuse_confirmations(replay, [given[0], Confirmation(id=given[1].id, signature=given[2].signature)], SignatureError)


def test_a_confirmation_from_outside_the_survivors(replay: Replay) -> None:
    survivors = replay.to_survivors()
    outside = next(iter(set(replay.case["u2"]) - set(replay.case["u3"])))
    extra = Confirmation(id=outside, signature=identity(replay, outside).sign("confirm", survivors.hu3))
    refuse_confirmations(replay, [*replay.confirmations.values(), extra], SurvivorsError)
    with pytest.raises(SurvivorsError):
        survivors.verify_confirmation(extra)


def test_one_member_cannot_confirm_for_the_threshold(replay: Replay) -> None:
    replay.to_survivors()
    given = list(replay.confirmations.values())
    refuse_confirmations(replay, [given[0], given[1], given[1], given[0]], CohortTooSmallError)


def test_nothing_is_revealed_when_the_record_cannot_be_written(replay: Replay) -> None:
    replay.to_survivors()
    machine = replay.machines[replay.case["u3"][0]]

    def full_disk(record: SpentRecord) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        machine.receive_confirmations(list(replay.confirmations.values()), full_disk)
    assert is_forgotten(machine)


def test_the_record_is_written_before_the_message_exists(replay: Replay) -> None:
    replay.to_survivors()
    machine = replay.machines[replay.case["u3"][0]]
    written: list[SpentRecord] = []

    def commit(record: SpentRecord) -> None:
        assert machine.state is ClientState.CONFIRMED
        written.append(record)

    message = machine.receive_confirmations(list(replay.confirmations.values()), commit)
    assert written[0].unmask == message
    assert written[0].u3 == tuple(replay.case["u3"])
    assert machine.state is ClientState.DONE
    assert machine._secrets is None
    with pytest.raises(PhaseError):  # a second unmask
        machine.receive_confirmations(list(replay.confirmations.values()), commit)
    assert len(written) == 1


def test_a_base_spent_while_the_session_ran_is_found_by_the_commit(replay: Replay) -> None:
    """The log is asked again inside the transaction, whatever the machine was told when it was made."""
    replay.to_survivors()
    machine, log = replay.machines[replay.case["u3"][0]], SpentLog()
    log.commit(SpentRecord(replay.plan.base_model_hash, replay.plan.part, ("a", "b"), b"", ANY_UNMASK))
    with pytest.raises(SpentError):
        machine.receive_confirmations(list(replay.confirmations.values()), log.commit)
    assert is_forgotten(machine)


# --- UNMASK and opening ----------------------------------------------------------------------------------------------


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
            replace(good, revealed={**good.revealed, "x": RevealedShare("self_mask", bytes(32))}).encode(),
            MalformedError,
        ),
        "wrong-kind": (
            replace(good, revealed={**good.revealed, survivor: RevealedShare("mask_sk", bytes(32))}).encode(),
            MalformedError,
        ),
        "self-mask-of-dropped": (
            replace(good, revealed={**good.revealed, dropped: RevealedShare("self_mask", bytes(32))}).encode(),
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
        machines[name].receive_shares([i for s in shares.values() for i in s.items if i.recipient == name])
        uploads[name] = mask_all(machines[name], inputs_for(name, plan.segments))
        machines[name].finish_upload()
    sharing = machines["site-0"]._sharing
    assert sharing is not None
    survivors = sharing.survivors({name: machines[name]._upload_digest for name in alive})
    confirmations = [machines[name].receive_survivors(survivors.message.survivors) for name in alive]
    unmasks = [machines[name].receive_confirmations(confirmations, SpentLog().commit) for name in alive][:answers]
    for index in range(liars):
        body = unmasks[index].parse()
        noise = {m: RevealedShare(s.kind, flip(s.share, index)) for m, s in body.revealed.items()}
        raw = replace(body, revealed=noise).encode()
        unmasks[index] = Unmask(id=alive[index], body=raw, signature=identity_of(index).sign("unmask", raw))
    masks = recover(survivors, unmasks)
    segment = plan.segments[0]
    _, count = chunk_span(segment, plan.chunk_coordinates, 0)
    opened = masks.open_chunk(segment, 0, [uploads[name]["part"][0] for name in alive])
    total = sum(inputs_for(name, [segment])["part"][:count].astype(np.uint64) for name in alive)
    assert [int(word) for word in opened] == [int(value) % 2**32 for value in np.asarray(total)]


@pytest.mark.parametrize(("n", "answers", "liars"), [(6, 5, 0), (7, 6, 1), (9, 8, 1), (10, 8, 1)])
def test_wrong_shares_are_corrected(n: int, answers: int, liars: int) -> None:
    opened_with_liars(n, liars, answers)


@pytest.mark.parametrize(("n", "answers", "liars"), [(6, 4, 1), (7, 5, 1), (7, 6, 2), (9, 8, 4)])
def test_too_many_wrong_shares_open_nothing(n: int, answers: int, liars: int) -> None:
    with pytest.raises(CommitmentError):
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


# --- wrong phase of every step ---------------------------------------------------------------------------------------


def machine_in(state: ClientState) -> Participant:
    replay = Replay(CASES[0])
    name = replay.case["u3"][0]
    if state is ClientState.ABORTED:
        replay.machines[name].abort()
    stages = {
        ClientState.JOINED: replay.to_cohort,
        ClientState.SHARED: replay.to_sharing,
        ClientState.UPLOADED: replay.to_uploads,
        ClientState.CONFIRMED: replay.to_survivors,
        ClientState.DONE: replay.to_unmasks,
    }
    if state is ClientState.MASKING:
        return masking_machine()
    stages.get(state, lambda: None)()
    machine = replay.machines[name]
    assert machine.state is state
    return machine


def call(machine: Participant, step: Step) -> None:
    calls: dict[Step, Any] = {
        Step.JOIN: lambda: machine.join(5),
        Step.COHORT: lambda: machine.receive_cohort([]),
        Step.SHARES: lambda: machine.receive_shares([]),
        Step.UPLOAD: lambda: machine.finish_upload(),
        Step.SURVIVORS: lambda: machine.receive_survivors([]),
        Step.CONFIRMATIONS: lambda: machine.receive_confirmations([], SpentLog().commit),
    }
    calls[step]()


@pytest.mark.parametrize(
    ("state", "step"), [(state, step) for state in ClientState for step in Step if (state, step) not in CLIENT_STEPS]
)
def test_every_step_in_every_wrong_state(state: ClientState, step: Step) -> None:
    machine = machine_in(state)
    with pytest.raises(PhaseError):
        call(machine, step)
    assert is_forgotten(machine)


@pytest.mark.parametrize("state", [state for state in ClientState if state is not ClientState.MASKING])
def test_masking_in_every_wrong_state(state: ClientState) -> None:
    with pytest.raises(PhaseError):
        machine_in(state).mask_chunk("part", 0, ring.zeros(8, 32))


# --- spent bases and releases ----------------------------------------------------------------------------------------

BASE, OLD, NEW = b"\x07" * 32, ("a", "b", "c"), ("a", "b", "d")


def record(u3: tuple[str, ...], release: Release | None = None, base: bytes = BASE, part: str = "part") -> SpentRecord:
    return SpentRecord(base, part, u3, bytes(32), ANY_UNMASK, release)


def test_one_base_and_part_is_summed_over_one_set() -> None:
    log = SpentLog([record(OLD)])
    log.commit(record(OLD))
    for other in (NEW, OLD[:2], (*OLD, "d")):
        with pytest.raises(SpentError):
            log.commit(record(other))
    log.commit(record(NEW, base=b"\x08" * 32))
    log.commit(record(NEW, part="decoder"))
    assert log.recorded(BASE, "part") == OLD


def test_a_release_is_used_once() -> None:
    release = Release(BASE, "part", OLD, NEW)
    log = SpentLog([record(OLD)])
    roster = replace(make_roster(5), releases=(release,))
    assert log.release(roster, BASE, "part") == release
    log.commit(record(NEW, release))
    assert log.recorded(BASE, "part") == NEW
    assert log.release(roster, BASE, "part") is None
    with pytest.raises(ReleaseError, match="already used"):
        log.commit(record(NEW, release))
    with pytest.raises(SpentError):
        log.commit(record(OLD))
    back = Release(BASE, "part", NEW, OLD)
    log.commit(record(OLD, back))
    assert log.release(roster, BASE, "part") is None  # the first release stays used when its start comes round again
    with pytest.raises(ReleaseError):
        log.commit(record(NEW, release))


@pytest.mark.parametrize(
    ("release", "u3", "recorded"),
    [
        (Release(BASE, "part", OLD, NEW), ("a", "d", "e"), OLD),
        (Release(BASE, "part", OLD, NEW), OLD, OLD),
        (Release(BASE, "part", OLD, NEW), NEW, ("a", "b", "e")),
        (Release(BASE, "part", OLD, NEW), NEW, ()),
        (Release(b"\x08" * 32, "part", OLD, NEW), NEW, OLD),
        (Release(BASE, "decoder", OLD, NEW), NEW, OLD),
    ],
    ids=["other-new", "same", "other-old", "unspent", "other-base", "other-part"],
)
def test_a_release_for_something_else(release: Release, u3: tuple[str, ...], recorded: tuple[str, ...]) -> None:
    with pytest.raises(ReleaseError):
        check_spent(recorded, set(), record(u3, release))
    roster = replace(make_roster(5), releases=(release,))
    if recorded != OLD or (release.base_model_hash, release.part) != (BASE, "part"):
        assert usable_release(recorded, roster, BASE, "part", set()) is None


def test_an_unknown_release_is_not_found() -> None:
    assert usable_release(OLD, make_roster(5), BASE, "part", set()) is None
    assert not make_roster(5).releases_pair(BASE, "part", OLD, NEW)
    released = replace(make_roster(5), releases=(Release(BASE, "part", OLD, NEW),))
    assert released.releases_pair(BASE, "part", OLD, NEW)
    assert not released.releases_pair(BASE, "part", NEW, OLD)


def test_a_second_session_with_other_survivors_ends_before_anything_is_shared() -> None:
    roster = make_roster(4)
    logs = {member: SpentLog() for member in roster.ids}
    Session(roster, make_plan(roster), make_participants(roster, make_plan(roster), logs), logs=logs).run()
    retry = make_plan(roster, attempt=1, reporters=roster.ids[:3])
    machines = make_participants(roster, retry, logs)
    del machines["site-3"]
    joins = [machine.join(2) for machine in machines.values()]
    for machine in machines.values():
        with pytest.raises(SpentError):
            machine.receive_cohort(joins)
