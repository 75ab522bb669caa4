"""Shares: each wrong one raises its own error, ends the machine and forgets its secrets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from tests.protocol.support.faults import flip, identity, is_forgotten
from tests.protocol.support.sessions import inbox_of, make_participants, make_plan, make_roster
from tests.protocol.test_vectors import CASES, Replay

from fedddpm_protocol.errors import (
    CohortError,
    CohortTooSmallError,
    DuplicateError,
    ReflectedShareError,
    ShareError,
    SignatureError,
    UnknownMemberError,
)
from fedddpm_protocol.wire.messages import Deal, ShareItem, Shares

Change = Callable[[list[ShareItem]], list[ShareItem]]


def altered(item: ShareItem, **changes: Any) -> ShareItem:
    return ShareItem.model_construct(**{**item.__dict__, **changes})


def refuse(replay: Replay, items: list[ShareItem], deals: list[Deal], error: type[Exception]) -> Any:
    machine = replay.machines[replay.case["u2"][0]]
    with pytest.raises(error) as caught:
        machine.receive_shares(items, deals)
    assert type(caught.value) is error
    assert is_forgotten(machine)
    return caught.value


def refuse_items(replay: Replay, change: Change, error: type[Exception]) -> Any:
    replay.to_sharing()
    items, deals = inbox_of(replay.case["u2"][0], replay.shares.values())
    return refuse(replay, change(items), deals, error)


def refuse_deals(replay: Replay, change: Callable[[list[Deal]], list[Deal]], error: type[Exception]) -> Any:
    replay.to_sharing()
    items, deals = inbox_of(replay.case["u2"][0], replay.shares.values())
    return refuse(replay, items, change(deals), error)


@pytest.mark.parametrize("position", [0, 11, 12, 140, 155])
def test_a_flipped_bit_in_a_sealed_share_is_the_aggregators(replay: Replay, position: int) -> None:
    """Its dealer's signature is over the hash of what it sent."""
    error = refuse_items(replay, lambda i: [altered(i[0], sealed=flip(i[0].sealed, position)), *i[1:]], ShareError)
    assert error.blame == "aggregator"


@pytest.mark.parametrize("cut", [b"longer", b"shorter"])
def test_a_sealed_share_of_the_wrong_length(replay: Replay, cut: bytes) -> None:
    def change(items: list[ShareItem]) -> list[ShareItem]:
        sealed = items[0].sealed + b"\0" if cut == b"longer" else items[0].sealed[:-1]
        with pytest.raises(ValidationError):
            ShareItem(**{**items[0].__dict__, "sealed": sealed})
        return [altered(items[0], sealed=sealed), *items[1:]]

    refuse_items(replay, change, ShareError)


@pytest.mark.parametrize("position", [0, 31, 32, 63])
def test_a_flipped_bit_in_the_signature_of_a_deal(replay: Replay, position: int) -> None:
    def change(deals: list[Deal]) -> list[Deal]:
        return [deals[0], deals[1].model_copy(update={"signature": flip(deals[1].signature, position)}), *deals[2:]]

    assert refuse_deals(replay, change, SignatureError).blame == replay.case["u2"][1]


def test_a_flipped_bit_in_a_commitment(replay: Replay) -> None:
    def change(deals: list[Deal]) -> list[Deal]:
        return [deals[0], deals[1].model_copy(update={"body": flip(deals[1].body, -1)}), *deals[2:]]

    assert refuse_deals(replay, change, SignatureError).blame == replay.case["u2"][1]


def test_the_own_deal_must_be_among_them(replay: Replay) -> None:
    refuse_deals(replay, lambda deals: deals[1:], CohortError)
    again = Replay(CASES[1])
    again.to_sharing()
    body = flip(again.shares[again.case["u2"][0]].deal.body, -1)
    own = Deal(body=body, signature=identity(again, again.case["u2"][0]).sign("deal", body))
    items, deals = inbox_of(again.case["u2"][0], again.shares.values())
    assert refuse(again, items, [own, *deals[1:]], CohortError).blame == "aggregator"


def test_two_deals_of_one_dealer(replay: Replay) -> None:
    refuse_deals(replay, lambda deals: [*deals, deals[1]], DuplicateError)


def test_items_and_deals_are_of_the_same_members(replay: Replay) -> None:
    error = refuse_items(replay, lambda items: items[1:], ShareError)
    assert error.blame == "aggregator"
    again = Replay(CASES[1])
    refuse_deals(again, lambda deals: deals[:-1], ShareError)


def test_a_reflected_share(replay: Replay) -> None:
    """The machine's own item comes back, in the place of one for it."""
    name = replay.case["u2"][0]

    def change(items: list[ShareItem]) -> list[ShareItem]:
        own = replay.shares[name].items[0]
        return [altered(own, sender=items[0].sender), *items[1:]]

    assert refuse_items(replay, change, ReflectedShareError).blame == "aggregator"


def test_a_misrouted_share_blames_the_aggregator(replay: Replay) -> None:
    def change(items: list[ShareItem]) -> list[ShareItem]:
        sender = items[0].sender
        theirs = next(i for i in replay.shares[sender].items if i.recipient == replay.case["u2"][2])
        return [theirs, *items[1:]]

    assert refuse_items(replay, change, ReflectedShareError).blame == "aggregator"


def test_a_share_under_another_name(replay: Replay) -> None:
    names = replay.case["u2"]
    refuse_items(replay, lambda i: [altered(i[0], sender=names[2]), altered(i[1], sender=names[1]), *i[2:]], ShareError)


def test_two_shares_of_one_sender(replay: Replay) -> None:
    refuse_items(replay, lambda items: [*items, items[0]], DuplicateError)


def test_a_share_from_outside_the_cohort(replay: Replay) -> None:
    refuse_items(replay, lambda items: [altered(items[0], sender="stranger"), *items[1:]], ShareError)


def test_too_few_sharers(replay: Replay) -> None:
    replay.to_sharing()
    items, deals = inbox_of(replay.case["u2"][0], replay.shares.values())
    refuse(replay, items[:1], deals[:2], CohortTooSmallError)


def test_too_few_sharers_for_the_local_policy() -> None:
    roster = make_roster(5)
    machines = make_participants(roster, make_plan(roster), floor=4)
    joins = [machine.join(1) for machine in machines.values()]
    shares = {name: machine.receive_cohort(joins) for name, machine in machines.items()}
    with pytest.raises(CohortTooSmallError, match="this institution"):
        machines["site-0"].receive_shares(*inbox_of("site-0", [shares[f"site-{k}"] for k in range(3)]))


def test_shares_of_another_session_are_refused() -> None:
    """The same members, spec and base: only the fresh keys differ, and with them the session."""
    roster = make_roster(3)
    runs = []
    for _ in range(2):
        machines = make_participants(roster, make_plan(roster))
        joins = [machine.join(1) for machine in machines.values()]
        runs.append((machines, {name: machine.receive_cohort(joins) for name, machine in machines.items()}))
    items, stale = inbox_of("site-0", runs[0][1].values())
    with pytest.raises(ShareError, match="another session"):
        runs[1][0]["site-0"].receive_shares(items, [runs[1][1]["site-0"].deal, *stale[1:]])


def broken_outboxes(items: tuple[ShareItem, ...], stranger: ShareItem) -> dict[str, tuple[ShareItem, ...]]:
    return {
        "one-missing": items[1:],
        "one-twice": (*items, items[0]),
        "twice-for-one": (items[0], items[0], *items[2:]),
        "of-another": (altered(items[0], sender=stranger.sender), *items[1:]),
        "to-a-stranger": (altered(items[0], recipient="stranger"), *items[1:]),
        "another-item": (altered(items[0], sealed=flip(items[0].sealed)), *items[1:]),
    }


@pytest.mark.parametrize(
    "case", ["one-missing", "one-twice", "twice-for-one", "of-another", "to-a-stranger", "another-item"]
)
def test_the_aggregator_takes_whole_outboxes_only(replay: Replay, case: str) -> None:
    replay.to_sharing()
    sender, second = replay.case["u2"][:2]
    own = replay.shares[sender]
    items = broken_outboxes(own.items, replay.shares[second].items[0])[case]
    with pytest.raises(ShareError):
        replay.cohort.verify_shares(sender, Shares.model_construct(items=items, deal=own.deal))


def test_the_aggregator_verifies_the_deal(replay: Replay) -> None:
    replay.to_sharing()
    sender, second = replay.case["u2"][:2]
    own = replay.shares[sender]
    forged = own.deal.model_copy(update={"signature": flip(own.deal.signature)})
    with pytest.raises(SignatureError):
        replay.cohort.verify_shares(sender, Shares(items=own.items, deal=forged))
    with pytest.raises(ShareError, match="in the place"):
        replay.cohort.verify_shares(sender, Shares(items=own.items, deal=replay.shares[second].deal))
    with pytest.raises(ShareError):
        replay.cohort.verify_shares("stranger", own)
    other = Replay(CASES[0])
    other.to_sharing()
    with pytest.raises((ShareError, UnknownMemberError, SignatureError)):
        replay.cohort.verify_shares(sender, other.shares[sender])
