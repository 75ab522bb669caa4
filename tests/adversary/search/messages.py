"""Every message that the aggregator and its accomplices can put together, and what they read in those they get.

All that knows the form of messages is here, so that another version of the protocol changes this file only. A place of
the cohort is filled by a ``Filling``: a tag that says what stands there, and the JOIN. Tags: ``now`` (the JOIN of the
member's machine), ``old`` (one of an earlier life or another offer), ``forged`` (signed by an accomplice in another's
name), ``own`` and ``other`` (two JOINs of one accomplice), ``copied`` (one with an honest member's mask key).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import NamedTuple

from tests.adversary.search.honest import Federation, Node, Offer, randomness
from tests.protocol.support.sessions import identity_of

from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.primitives import canonical, keys
from fedddpm_protocol.session.cohort import Cohort, SurvivorSet
from fedddpm_protocol.session.dealing import deal_shares
from fedddpm_protocol.session.sealed import NONCE_BYTES, channel_key, open_sealed, seal
from fedddpm_protocol.session.session_secrets import DealtPair, DealtShare, SessionSecrets
from fedddpm_protocol.wire.messages import Confirmation, Deal, Join, JoinBody, ShareItem, Shares, Survivor, Unmask

Kind = str  # "self_mask" or "mask_sk"


@dataclass(frozen=True)
class Filling:
    """What stands in one place of a cohort."""

    tag: str
    join: Join

    @cached_property
    def body(self) -> JoinBody:
        return self.join.parse()


class Parcel(NamedTuple):
    """What one sender has for one recipient: its item, and the deal that everybody sees."""

    item: ShareItem
    deal: Deal


@dataclass(frozen=True)
class Secrets:
    """Session secrets behind a JOIN that the adversary made."""

    channel: bytes
    mask: bytes
    self_mask: bytes


@dataclass(frozen=True)
class Accomplices:
    """The members that stand with the aggregator: they sign whatever helps."""

    federation: Federation
    spoil: bool = False  # whether they deal other shares than they commit to
    _dealt: dict[tuple[bytes, int, str], Shares] = field(default_factory=dict, compare=False)

    @property
    def members(self) -> range:
        return range(self.federation.n - self.federation.conspirators, self.federation.n)

    def secrets(self, member: int, offer: Offer, tag: str) -> Secrets:
        """Behind the JOIN that the adversary makes in the name of ``member``."""
        return Secrets(*(_secret(name, member, offer.spec_hash, tag) for name in ("channel", "mask", "self mask")))

    def join(self, member: int, offer: Offer, tag: str, copied: bytes | None = None) -> Filling:
        """A JOIN in the name of ``member``; ``forged``: of one whose identity the adversary does not hold."""
        held, name = self.secrets(member, offer, tag), f"site-{member}"
        public = [keys.x25519_public(held.channel), copied or keys.x25519_public(held.mask)]
        commitment = canonical.tagged_hash("bcommit", name.encode(), held.self_mask)
        body = canonical.encode(JoinBody(offer.spec_hash, name, 1, public[0], public[1], commitment, bytes(32), ()))
        return Filling(tag, Join(body=body, signature=self.identity(member).sign("join", body)))

    def parcel(self, cohort: Cohort, offer: Offer, member: int, tag: str, recipient: str) -> Parcel:
        """An item for ``recipient`` and the deal that names it, of an accomplice or in another's name."""
        key = (cohort.session_id, member, tag)
        if key not in self._dealt:
            held = self.secrets(member, offer, tag)
            kept = SessionSecrets(bytearray(held.channel), bytearray(held.mask), bytearray(held.self_mask))
            identity = self.identity(member)
            dealt = deal_shares(cohort, f"site-{member}", identity, kept, bytes)
            self._dealt[key] = spoiled(cohort, dealt, identity, kept, cohort.ids) if self.spoil else dealt
        parcel = parcel_to(self._dealt[key], recipient)
        assert parcel is not None
        return parcel

    def confirm(self, member: str, hu3: bytes) -> Confirmation:
        """A confirmation in the name of ``member``, by its key where the adversary has it."""
        return _confirmation(member, self.identity(int(member.split("-")[1])), hu3)

    def identity(self, member: int) -> keys.SigningKey:
        """Its key, or another where the adversary does not hold it."""
        return identity_of(member if member in self.members else 99)


def spoiled(
    cohort: Cohort, good: Shares, identity: keys.SigningKey, held: SessionSecrets, victims: Sequence[str]
) -> Shares:
    """What was well dealt, but with items for ``victims`` that hold other shares than are committed to."""
    body, sid, items, lines = good.deal.parse(), cohort.session_id, [], []
    wrong = DealtPair(DealtShare(bytes(32), bytes(32)), DealtShare(bytes(32), bytes(32)))
    sent = {item.recipient: item for item in good.items}
    for line in body.lines:
        if line.recipient in sent:
            sealed = sent[line.recipient].sealed
            if line.recipient in victims:
                public = cohort.body(line.recipient).channel_public_key
                key = channel_key(bytes(held.channel_private), public, sid, body.dealer, line.recipient)
                sealed = seal(key, sid, body.dealer, line.recipient, wrong, bytes(NONCE_BYTES))
            items.append(ShareItem(sender=body.dealer, recipient=line.recipient, sealed=sealed))
            line = replace(line, sealed=hashlib.sha256(sealed).digest())
        lines.append(line)
    raw = canonical.encode(replace(body, lines=tuple(lines)))
    return Shares(items=tuple(items), deal=Deal(body=raw, signature=identity.sign("deal", raw)))


@cache
def _confirmation(member: str, identity: keys.SigningKey, hu3: bytes) -> Confirmation:
    return Confirmation(id=member, signature=identity.sign("confirm", hu3))


@cache
def _secret(*names: object) -> bytes:
    return canonical.tagged_hash("search", repr(names).encode())


# --- what is delivered -----------------------------------------------------------------------------------------------


def deliver_cohort(node: Node, fillings: Sequence[Filling]) -> None:
    node.machine._random = randomness(node.member, tuple(filling.join.body for filling in fillings))
    node.tags = {filling.body.id: filling.tag for filling in fillings}
    node.sent = node.machine.receive_cohort([filling.join for filling in fillings])


def deliver_shares(node: Node, parcels: Sequence[Parcel], own: Sequence[Deal]) -> None:
    """``own``: what stands in the place of the machine's own deal."""
    node.machine.receive_shares([parcel.item for parcel in parcels], [*own, *(parcel.deal for parcel in parcels)])


def survivors_message(digests: Mapping[str, bytes]) -> list[Survivor]:
    return [Survivor(id=member, upload_digest=digest) for member, digest in sorted(digests.items())]


def deliver_survivors(node: Node, survivors: Sequence[Survivor]) -> None:
    node.sent = node.machine.receive_survivors(survivors)


def usable(survivors: SurvivorSet, confirmations: Iterable[Confirmation]) -> list[Confirmation]:
    """Those that a member with this set of survivors would take; the adversary can find out by itself."""
    taken: dict[str, Confirmation] = {}
    for confirmation in confirmations:
        if confirmation.id not in taken:
            try:
                survivors.verify_confirmation(confirmation)
            except ProtocolError:
                continue
            taken[confirmation.id] = confirmation
    return [taken[member] for member in sorted(taken)]


# --- what is read ----------------------------------------------------------------------------------------------------


def cohort_of(node: Node) -> Cohort:
    assert node.machine._cohort is not None
    return node.machine._cohort


def survivors_of(node: Node) -> SurvivorSet:
    assert node.machine._survivors is not None
    return node.machine._survivors


def u2_of(node: Node) -> tuple[tuple[str, ...], bytes]:
    """Who shared, as this member was told, and the hash that is in its masks."""
    assert node.machine._sharing is not None
    return node.machine._sharing.ids, node.machine._sharing.hu2


def digest_of(node: Node) -> bytes:
    """The digest of its upload."""
    return node.machine._upload_digest


def own_deal_of(node: Node) -> Deal:
    """The deal that it sent."""
    assert node.machine._own_deal is not None
    return node.machine._own_deal


def other_own(node: Node, hands: Accomplices) -> list[list[Deal]]:
    """What could stand in the place of the machine's own deal: nothing, or one that the adversary made of it."""
    body = own_deal_of(node).parse()
    lines = tuple(replace(line, self_mask=line.mask_sk) for line in body.lines)
    raw = canonical.encode(replace(body, lines=lines))
    return [[], [Deal(body=raw, signature=hands.identity(99).sign("deal", raw))]]


def parcel_to(shares: Shares, recipient: str) -> Parcel | None:
    return next((Parcel(item, shares.deal) for item in shares.items if item.recipient == recipient), None)


def opened_by(secrets: Secrets, item: ShareItem, node: Node) -> DealtPair:
    """The two shares in an item for a place of the cohort that the adversary fills."""
    cohort = cohort_of(node)
    public = cohort.body(item.sender).channel_public_key
    key = channel_key(secrets.channel, public, cohort.session_id, item.sender, item.recipient)
    return open_sealed(item.sealed, key, cohort.session_id, item.sender, item.recipient)


def revealed(unmask: Unmask) -> list[tuple[str, Kind, bytes]]:
    """Owner, kind and share of all that an UNMASK holds, in whatever number."""
    fields = canonical.unlp(unmask.body)[2:]
    return [
        (owner.decode(), kind.decode(), share)
        for owner, kind, share in zip(fields[::4], fields[1::4], fields[2::4], strict=True)
    ]
