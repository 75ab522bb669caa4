"""JOIN and cohort: each wrong message raises its own error, ends the machine and forgets its secrets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.protocol.support.faults import flip, identity, is_forgotten
from tests.protocol.support.sessions import make_participants, make_plan, make_roster
from tests.protocol.test_vectors import CASES, Replay

from fedddpm_protocol.errors import (
    CohortError,
    CohortTooSmallError,
    DuplicateError,
    MalformedError,
    PeerProtocolError,
    SignatureError,
    SpecError,
    UnknownMemberError,
)
from fedddpm_protocol.primitives import canonical, keys
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.cohort import verify_join
from fedddpm_protocol.wire.messages import Join, JoinBody

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


def test_every_refusal_of_a_peer_can_name_it() -> None:
    assert PeerProtocolError("wrong", "site-1").blame == "site-1"
    assert "site-1" in str(PeerProtocolError("wrong", "site-1"))
    assert PeerProtocolError("wrong").blame is None
