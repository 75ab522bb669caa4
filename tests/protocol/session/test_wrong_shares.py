"""Shares: each wrong one raises its own error, ends the machine and forgets its secrets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from tests.protocol.support.faults import flip, identity, is_forgotten
from tests.protocol.support.sessions import make_participants, make_plan, make_roster
from tests.protocol.test_vectors import CASES, Replay

from fedddpm_protocol.errors import (
    CohortTooSmallError,
    DuplicateError,
    ReflectedShareError,
    ShareError,
    SignatureError,
    UnknownMemberError,
)
from fedddpm_protocol.session.sealed import channel_key, open_item, seal
from fedddpm_protocol.wire.messages import ShareItem, Shares


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
