"""JOIN, cohort and shares: each wrong message raises its own error, ends the machine and forgets its secrets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError
from tests.protocol.faults import flip, identity, is_forgotten
from tests.protocol.sessions import identity_of, make_participants, make_plan, make_roster
from tests.protocol.test_vectors import CASES, Replay

from fedddpm_protocol.agreement.roster import Release
from fedddpm_protocol.errors import (
    CohortError,
    CohortTooSmallError,
    DuplicateError,
    MalformedError,
    PeerProtocolError,
    ReflectedShareError,
    RosterError,
    ShareError,
    SignatureError,
    SpecError,
    SpentError,
    UnknownMemberError,
)
from fedddpm_protocol.primitives import canonical, keys
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.cohort import verify_join
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.sealed import channel_key, open_item, seal
from fedddpm_protocol.wire.messages import Join, JoinBody, ShareItem, Shares
from fedddpm_protocol.wire.phases import ClientState

P = 2**255 - 19
# The points of order 1, 2, 4 and 8 of Curve25519 and its twist, and the other encodings of the first two (Wycheproof,
# x25519_test: "low order public key"; https://cr.yp.to/ecdh.html#validate).
LOW_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
    P,
    P + 1,
]


@pytest.fixture
def replay() -> Replay:
    """Five members of the known answers: U1 has five, U2 four, U3 three; t = 3."""
    return Replay(CASES[1])


def rejoin(replay: Replay, name: str, raw: bytes | None = None, **changes: Any) -> Join:
    """A JOIN that its own identity signed, with other content: what a dishonest member can send."""
    body = canonical.encode(replace(replay.joins[name].parse(), **changes)) if raw is None else raw
    return Join(body=body, signature=identity(replay, name).sign("join", body))


def unframed(body: JoinBody, **changes: Any) -> bytes:
    """The fields of a JOIN in their order, without the checks of the record."""
    fields = {**body.__dict__, **changes}
    values = [fields["spec_hash"], fields["id"].encode(), canonical.u64(fields["seq"])]
    values += [fields[n] for n in ("channel_public_key", "mask_public_key", "self_mask_commitment", "nonce")]
    return canonical.lp(*values, canonical.lp(*(member.encode() for member in fields["recorded_u3"])))


def deliver(replay: Replay, change: Callable[[dict[str, Join]], list[Join]], error: type[Exception]) -> Any:
    """Give every machine a changed cohort; each must raise ``error``."""
    replay.to_cohort()
    joins = change(dict(replay.joins))
    for name in sorted(replay.machines)[::4]:
        machine = replay.machines[name]
        with pytest.raises(error) as caught:
            machine.receive_cohort(joins)
        assert type(caught.value) is error
        assert is_forgotten(machine)
    return caught.value


def other(replay: Replay) -> str:
    """A member that is neither the first nor the last, whom the tests above use as receivers."""
    return str(sorted(replay.machines)[2])


# --- JOIN and cohort -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["channel_public_key", "mask_public_key", "self_mask_commitment", "nonce", "spec_hash", "seq"]
)
def test_a_flipped_bit_in_any_join_field(replay: Replay, name: str) -> None:
    def change(joins: dict[str, Join]) -> list[Join]:
        join = joins[other(replay)]
        value = join.parse().__dict__[name]
        body = unframed(join.parse(), **{name: value ^ 1 if isinstance(value, int) else flip(value)})
        return [*(j for m, j in joins.items() if m != other(replay)), Join(body=body, signature=join.signature)]

    assert deliver(replay, change, SignatureError).blame == other(replay)


def test_a_flipped_bit_anywhere_in_a_join(replay: Replay) -> None:
    replay.to_cohort()
    join = replay.joins[other(replay)]
    for position in range(len(join.body)):
        with pytest.raises((SignatureError, MalformedError, UnknownMemberError)):
            verify_join(replay.plan, replay.roster, Join(body=flip(join.body, position), signature=join.signature))
    for position in range(64):
        with pytest.raises(SignatureError):
            verify_join(replay.plan, replay.roster, Join(body=join.body, signature=flip(join.signature, position)))


def test_own_join_missing(replay: Replay) -> None:
    replay.to_cohort()
    for name, machine in replay.machines.items():
        with pytest.raises(CohortError):
            machine.receive_cohort([join for member, join in replay.joins.items() if member != name])
        assert is_forgotten(machine)


def test_own_join_replaced_by_another_that_the_identity_signed(replay: Replay) -> None:
    replay.to_cohort()
    for name, machine in replay.machines.items():
        twin = rejoin(replay, name, seq=99)
        with pytest.raises(CohortError, match="same identity"):
            machine.receive_cohort([twin, *(join for member, join in replay.joins.items() if member != name)])


def replaced(replay: Replay, **changes: Any) -> Callable[[dict[str, Join]], list[Join]]:
    return lambda joins: list({**joins, other(replay): rejoin(replay, other(replay), **changes)}.values())


def test_a_join_for_another_spec(replay: Replay) -> None:
    deliver(replay, replaced(replay, spec_hash=bytes(32)), SpecError)


def test_the_same_member_twice(replay: Replay) -> None:
    deliver(replay, lambda joins: [*joins.values(), joins[other(replay)]], DuplicateError)
    again = Replay(CASES[1])
    deliver(again, lambda joins: [*joins.values(), rejoin(again, other(again), seq=2**32)], DuplicateError)


def test_the_same_ephemeral_key_twice(replay: Replay) -> None:
    replay.to_cohort()
    victim = replay.joins[sorted(replay.joins)[1]].parse()
    for field in ("channel_public_key", "mask_public_key"):
        for stolen in (victim.channel_public_key, victim.mask_public_key):
            fresh = Replay(CASES[1])
            deliver(fresh, replaced(fresh, **{field: stolen}), DuplicateError)
    own = Replay(CASES[1])
    own.to_cohort()
    body = own.joins[other(own)].parse()
    deliver(own := Replay(CASES[1]), replaced(own, mask_public_key=body.channel_public_key), DuplicateError)


def test_a_stranger_in_the_cohort(replay: Replay) -> None:
    stranger = SigningKey(bytes([200]) * 32)

    def change(joins: dict[str, Join]) -> list[Join]:
        body = canonical.encode(replace(joins[other(replay)].parse(), id="stranger"))
        return [*joins.values(), Join(body=body, signature=stranger.sign("join", body))]

    assert deliver(replay, change, UnknownMemberError).blame == "stranger"


def test_a_member_that_does_not_report_this_part() -> None:
    roster = make_roster(5)
    machines = make_participants(roster, make_plan(roster, reporters=roster.ids[:4]))
    joins = [machine.join(1) for machine in machines.values()]
    with pytest.raises(UnknownMemberError):
        machines["site-0"].receive_cohort(joins)


@pytest.mark.parametrize("change", [b"+", b"-", b"8"])
def test_a_join_of_the_wrong_form(replay: Replay, change: bytes) -> None:
    replay.to_cohort()
    body = replay.joins[other(replay)].body
    raw = {b"+": body + b"\0", b"-": body[:-1], b"8": body + bytes(8)}[change]
    deliver(fresh := Replay(CASES[1]), replaced(fresh, raw=raw), MalformedError)


@pytest.mark.parametrize("size", [0, 31, 33])
@pytest.mark.parametrize("name", ["channel_public_key", "mask_public_key", "self_mask_commitment", "nonce"])
def test_join_fields_of_the_wrong_length(replay: Replay, name: str, size: int) -> None:
    replay.to_cohort()
    raw = unframed(replay.joins[other(replay)].parse(), **{name: bytes(size)})
    with pytest.raises(MalformedError):
        verify_join(replay.plan, replay.roster, rejoin(replay, other(replay), raw=raw))


@pytest.mark.parametrize("recorded", [("b", "a"), ("a", "a"), ("a", "b")], ids=["unsorted", "double", "without-self"])
def test_recorded_survivors_must_be_a_set_with_their_sender(replay: Replay, recorded: tuple[str, ...]) -> None:
    replay.to_cohort()
    raw = unframed(replay.joins[other(replay)].parse(), recorded_u3=recorded)
    with pytest.raises(MalformedError):
        verify_join(replay.plan, replay.roster, rejoin(replay, other(replay), raw=raw))


@pytest.mark.parametrize("u", LOW_ORDER)
def test_low_order_session_keys(replay: Replay, u: int) -> None:
    public = u.to_bytes(32, "little")
    with pytest.raises(MalformedError):
        keys.x25519_shared(bytes(range(32)), public)
    for field in ("channel_public_key", "mask_public_key"):
        fresh = Replay(CASES[1])
        assert deliver(fresh, replaced(fresh, **{field: public}), MalformedError).blame == other(fresh)


@pytest.mark.parametrize("u", [*(u + 2**255 for u in LOW_ORDER), P + 9, 2**255 + 9, 2**256 - 1])
def test_other_encodings_of_a_session_key(replay: Replay, u: int) -> None:
    """RFC 7748 ignores the top bit and reduces mod p; here a key has one form, so that no copy passes as another."""
    fresh = Replay(CASES[1])
    deliver(fresh, replaced(fresh, mask_public_key=u.to_bytes(32, "little")), MalformedError)


def test_honest_session_keys_pass() -> None:
    for value in range(64):
        keys.require_session_key(keys.x25519_public(bytes([value]) * 32))


def test_too_small_a_cohort(replay: Replay) -> None:
    replay.to_cohort()
    name = sorted(replay.machines)[0]
    with pytest.raises(CohortTooSmallError):
        replay.machines[name].receive_cohort([replay.joins[name], replay.joins[other(replay)]])


def test_a_cohort_below_the_absolute_c_max() -> None:
    """Three members satisfy floor(n/2) + 1, but not the threshold for two conspirators."""
    roster = make_roster(6, 2, 4)
    machines = make_participants(roster, make_plan(roster))
    joins = [machine.join(1) for machine in machines.values()][:3]
    with pytest.raises(CohortTooSmallError):
        machines["site-0"].receive_cohort(joins)


def test_a_cohort_below_the_local_policy() -> None:
    roster = make_roster(5)
    machines = make_participants(roster, make_plan(roster), floor=5)
    joins = [machine.join(1) for machine in machines.values()][:4]
    with pytest.raises(CohortTooSmallError, match="this institution"):
        machines["site-0"].receive_cohort(joins)


def test_too_large_a_cohort() -> None:
    roster = make_roster(5)
    machines = make_participants(roster, make_plan(roster, largest_cohort=4))
    joins = [machine.join(1) for machine in machines.values()]
    with pytest.raises(MalformedError, match="room for 4"):
        machines["site-0"].receive_cohort(joins)


# --- spent bases and newer rosters at the cohort ---------------------------------------------------------------------


def machine_for(index: int, recorded: tuple[str, ...] = (), release: Release | None = None, n: int = 5) -> Participant:
    roster = make_roster(n)
    return Participant(
        identity=identity_of(index),
        member_id=f"site-{index}",
        roster=roster,
        plan=make_plan(roster),
        floor=roster.n_min,
        recorded_u3=recorded,
        release=release,
    )


def test_a_spent_member_takes_part_with_the_same_survivors_only() -> None:
    recorded = ("site-0", "site-1", "site-2")
    for size, allowed in ((3, True), (4, False), (5, False)):
        machines = [machine_for(0, recorded), *(machine_for(index) for index in range(1, size))]
        joins = [machine.join(1) for machine in machines]
        assert joins[0].parse().recorded_u3 == recorded
        if allowed:
            machines[0].receive_cohort(joins)
            continue
        with pytest.raises(SpentError):
            machines[0].receive_cohort(joins)
        assert is_forgotten(machines[0])


def test_a_release_names_the_new_survivors() -> None:
    old, new = ("site-0", "site-1", "site-2"), ("site-0", "site-1", "site-3")
    release = Release(b"\x07" * 32, "part", old, new)
    machines = [machine_for(0, old, release), machine_for(1, old, release), machine_for(3)]
    machines[0].receive_cohort([machine.join(1) for machine in machines])
    left_out = machine_for(2, old, release)
    with pytest.raises(SpentError, match="sits out"):
        left_out.join(1)


@pytest.mark.parametrize("seen", ["before-join", "joined", "shared"])
@pytest.mark.parametrize(("n", "c_max", "n_min"), [(4, 0, 3), (5, 1, 3)], ids=["member-removed", "c_max-raised"])
def test_a_newer_roster_ends_the_session_whenever_it_is_seen(seen: str, n: int, c_max: int, n_min: int) -> None:
    newer = make_roster(n, c_max, n_min, version=2)
    machines = [machine_for(index) for index in range(5)]
    machine = machines[0]

    def whole() -> None:
        if seen == "before-join":
            machine.check_newer_roster(newer)
        joins = [each.join(1) for each in machines]
        if seen == "joined":
            machine.check_newer_roster(newer)
        machine.receive_cohort(joins)
        if seen == "shared":
            machine.check_newer_roster(newer)

    with pytest.raises(RosterError, match="version 2"):
        whole()
    assert is_forgotten(machine)


def test_a_newer_roster_that_only_adds_members_ends_nothing() -> None:
    machines = [machine_for(index) for index in range(5)]
    joins = [machine.join(1) for machine in machines]
    machines[0].check_newer_roster(make_roster(7, version=2))
    machines[0].receive_cohort(joins)
    assert machines[0].state is ClientState.SHARED


# --- shares ----------------------------------------------------------------------------------------------------------


def inbox(replay: Replay, name: str) -> list[ShareItem]:
    return [i for sender, s in replay.shares.items() if sender != name for i in s.items if i.recipient == name]


def altered(item: ShareItem, **changes: Any) -> ShareItem:
    return ShareItem.model_construct(**{**item.__dict__, **changes})


def refuse_shares(replay: Replay, change: Callable[[list[ShareItem]], list[ShareItem]], error: type[Exception]) -> Any:
    replay.to_sharing()
    name = replay.case["u2"][0]
    machine = replay.machines[name]
    with pytest.raises(error) as caught:
        machine.receive_shares(change(inbox(replay, name)))
    assert type(caught.value) is error
    assert is_forgotten(machine)
    return caught.value


@pytest.mark.parametrize("position", [0, 11, 12, 60, 91])
def test_a_flipped_bit_in_a_sealed_share(replay: Replay, position: int) -> None:
    def change(items: list[ShareItem]) -> list[ShareItem]:
        return [altered(items[0], sealed=flip(items[0].sealed, position)), *items[1:]]

    assert refuse_shares(replay, change, SignatureError).blame == replay.case["u2"][1]


@pytest.mark.parametrize("position", [0, 31, 32, 63])
def test_a_flipped_bit_in_a_share_signature(replay: Replay, position: int) -> None:
    refuse_shares(replay, lambda i: [altered(i[0], signature=flip(i[0].signature, position)), *i[1:]], SignatureError)


@pytest.mark.parametrize("cut", [b"longer", b"shorter"])
def test_a_sealed_share_of_the_wrong_length(replay: Replay, cut: bytes) -> None:
    def change(items: list[ShareItem]) -> list[ShareItem]:
        sealed = items[0].sealed + b"\0" if cut == b"longer" else items[0].sealed[:-1]
        with pytest.raises(ValidationError):
            ShareItem(**{**items[0].__dict__, "sealed": sealed})
        return [altered(items[0], sealed=sealed), *items[1:]]

    refuse_shares(replay, change, SignatureError)


def resealed(replay: Replay, sender: str, recipient: str, shares: tuple[bytes, bytes], swap: bool = False) -> ShareItem:
    """An item that a dishonest member made and signed itself; ``swap`` takes the channel key of the way back."""
    private = bytes.fromhex(replay.clients[sender]["channel_sk"])
    public = replay.cohort.body(recipient).channel_public_key
    ends = (recipient, sender) if swap else (sender, recipient)
    key = channel_key(private, public, replay.cohort.session_id, *ends)
    return seal(key, identity(replay, sender), replay.cohort.session_id, sender, recipient, shares, bytes(12))


def test_a_share_that_does_not_open_blames_its_signer(replay: Replay) -> None:
    receiver, sender = replay.case["u2"][:2]

    def change(items: list[ShareItem]) -> list[ShareItem]:
        backwards = resealed(replay, sender, receiver, (bytes(32), bytes(32)), swap=True)
        return [backwards, *(item for item in items if item.sender != sender)]

    assert refuse_shares(replay, change, ShareError).blame == sender


def test_a_share_of_the_wrong_size_inside(replay: Replay) -> None:
    replay.to_sharing()
    receiver, sender = replay.case["u2"][:2]
    with pytest.raises(ValidationError):
        resealed(replay, sender, receiver, (bytes(31), bytes(32)))


def test_an_item_of_the_right_size_opens(replay: Replay) -> None:
    replay.to_sharing()
    receiver, sender = replay.case["u2"][:2]
    item = resealed(replay, sender, receiver, (b"\x01" * 32, b"\x02" * 32))
    private = bytes.fromhex(replay.clients[receiver]["channel_sk"])
    public = replay.cohort.body(sender).channel_public_key
    key = channel_key(private, public, replay.cohort.session_id, sender, receiver)
    assert open_item(item, key, replay.cohort.session_id, receiver) == (b"\x01" * 32, b"\x02" * 32)


def test_a_reflected_share(replay: Replay) -> None:
    """The machine's own item comes back, as it is or turned round."""
    name = replay.case["u2"][0]
    error = refuse_shares(replay, lambda items: [replay.shares[name].items[0], *items], ReflectedShareError)
    assert error.blame == "aggregator"
    turned = Replay(CASES[1])

    def change(items: list[ShareItem]) -> list[ShareItem]:
        own = turned.shares[name].items[0]
        return [altered(own, sender=own.recipient, recipient=own.sender)]

    refuse_shares(turned, change, SignatureError)


def test_a_misrouted_share_blames_the_aggregator(replay: Replay) -> None:
    def change(items: list[ShareItem]) -> list[ShareItem]:
        sender = items[0].sender
        theirs = next(i for i in replay.shares[sender].items if i.recipient == replay.case["u2"][2])
        return [theirs, *items[1:]]

    assert refuse_shares(replay, change, ReflectedShareError).blame == "aggregator"


def test_a_share_under_another_name(replay: Replay) -> None:
    names = replay.case["u2"]
    refuse_shares(replay, lambda i: [altered(i[0], sender=names[2]), altered(i[1], sender=names[1])], SignatureError)


def test_two_shares_of_one_sender(replay: Replay) -> None:
    refuse_shares(replay, lambda items: [*items, items[0]], DuplicateError)


def test_a_share_from_outside_the_cohort(replay: Replay) -> None:
    refuse_shares(replay, lambda items: [altered(items[0], sender="stranger"), *items[1:]], UnknownMemberError)


def test_too_few_sharers(replay: Replay) -> None:
    refuse_shares(replay, lambda items: items[:1], CohortTooSmallError)


def test_too_few_sharers_for_the_local_policy() -> None:
    roster = make_roster(5)
    machines = make_participants(roster, make_plan(roster), floor=4)
    joins = [machine.join(1) for machine in machines.values()]
    shares = {name: machine.receive_cohort(joins) for name, machine in machines.items()}
    items = [i for name in ("site-1", "site-2") for i in shares[name].items if i.recipient == "site-0"]
    with pytest.raises(CohortTooSmallError, match="this institution"):
        machines["site-0"].receive_shares(items)


def test_shares_of_another_session_are_refused() -> None:
    """The same members, spec and base: only the fresh keys differ, and with them the session."""
    roster = make_roster(3)
    runs = []
    for _ in range(2):
        machines = make_participants(roster, make_plan(roster))
        joins = [machine.join(1) for machine in machines.values()]
        runs.append((machines, {name: machine.receive_cohort(joins) for name, machine in machines.items()}))
    stale = [i for name, s in runs[0][1].items() for i in s.items if i.recipient == "site-0"]
    with pytest.raises(SignatureError):
        runs[1][0]["site-0"].receive_shares(stale)


def broken_outboxes(items: tuple[ShareItem, ...], stranger: ShareItem) -> dict[str, tuple[ShareItem, ...]]:
    return {
        "one-missing": items[1:],
        "one-twice": (*items, items[0]),
        "twice-for-one": (items[0], items[0], *items[2:]),
        "of-another": (altered(items[0], sender=stranger.sender), *items[1:]),
        "to-a-stranger": (altered(items[0], recipient="stranger"), *items[1:]),
    }


@pytest.mark.parametrize("case", ["one-missing", "one-twice", "twice-for-one", "of-another", "to-a-stranger"])
def test_the_aggregator_takes_whole_outboxes_only(replay: Replay, case: str) -> None:
    replay.to_sharing()
    sender, second = replay.case["u2"][:2]
    items = broken_outboxes(replay.shares[sender].items, replay.shares[second].items[0])[case]
    with pytest.raises(ShareError):
        replay.cohort.verify_shares(sender, Shares(items=items))


def test_the_aggregator_verifies_every_share_signature(replay: Replay) -> None:
    replay.to_sharing()
    sender = replay.case["u2"][0]
    items = replay.shares[sender].items
    for index, item in enumerate(items):
        forged = (*items[:index], altered(item, signature=flip(item.signature)), *items[index + 1 :])
        with pytest.raises(SignatureError):
            replay.cohort.verify_shares(sender, Shares(items=forged))
    with pytest.raises(UnknownMemberError):
        replay.cohort.verify_shares("stranger", replay.shares[sender])


def test_every_refusal_of_a_peer_can_name_it() -> None:
    assert PeerProtocolError("wrong", "site-1").blame == "site-1"
    assert "site-1" in str(PeerProtocolError("wrong", "site-1"))
    assert PeerProtocolError("wrong").blame is None
