"""Every message that the aggregator and its accomplices can put together, and what they read in those they get.

All that knows the form of messages is here, so that another version of the protocol changes this file only. A place of
the cohort is filled by a ``Filling``: a tag that says what stands there, and the JOIN. Tags: ``now`` (the JOIN of the
member's machine), ``old`` (one of an earlier life or another offer), ``forged`` (signed by an accomplice in another's
name), ``own`` and ``other`` (two JOINs of one accomplice), ``copied`` (one with an honest member's mask key).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from tests.adversary.search.honest import Federation, Node, Offer, randomness
from tests.protocol.support.sessions import identity_of

from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.primitives import canonical, keys
from fedddpm_protocol.session.cohort import Cohort, SurvivorSet
from fedddpm_protocol.session.sealed import channel_key, open_item, seal
from fedddpm_protocol.wire.messages import Confirmation, Join, JoinBody, ShareItem, Shares, Survivor, Unmask

Kind = str  # "self_mask" or "mask_sk"


@dataclass(frozen=True)
class Filling:
    """What stands in one place of a cohort."""

    tag: str
    join: Join

    @cached_property
    def body(self) -> JoinBody:
        return self.join.parse()


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
        return Filling(tag, Join(body=body, signature=self._identity(member).sign("join", body)))

    def share(self, cohort: Cohort, offer: Offer, member: int, tag: str, recipient: str) -> ShareItem:
        """Two shares of an accomplice, or in another's name, for ``recipient``."""
        held, name, sid = self.secrets(member, offer, tag), f"site-{member}", cohort.session_id
        key = channel_key(held.channel, cohort.body(recipient).channel_public_key, sid, name, recipient)
        return seal(key, self._identity(member), sid, name, recipient, (bytes(32), bytes(32)), bytes(12))

    def confirm(self, member: str, hu3: bytes) -> Confirmation:
        """A confirmation in the name of ``member``, by its key where the adversary has it."""
        return _confirmation(member, self._identity(int(member.split("-")[1])), hu3)

    def _identity(self, member: int) -> keys.SigningKey:
        return identity_of(member if member in self.members else 99)


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


def deliver_shares(node: Node, items: Sequence[ShareItem]) -> None:
    node.machine.receive_shares(items)


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


def item_to(shares: Shares, recipient: str) -> ShareItem | None:
    return next((item for item in shares.items if item.recipient == recipient), None)


def opened_by(secrets: Secrets, item: ShareItem, node: Node) -> tuple[bytes, bytes]:
    """The two shares in an item for a place of the cohort that the adversary fills."""
    cohort = cohort_of(node)
    public = cohort.body(item.sender).channel_public_key
    key = channel_key(secrets.channel, public, cohort.session_id, item.sender, item.recipient)
    return open_item(item, key, cohort.session_id, item.recipient)


def revealed(unmask: Unmask) -> list[tuple[str, Kind, bytes]]:
    """Owner, kind and share of all that an UNMASK holds, in whatever number."""
    fields = canonical.unlp(unmask.body)[2:]
    return [
        (owner.decode(), kind.decode(), share)
        for owner, kind, share in zip(fields[::3], fields[1::3], fields[2::3], strict=True)
    ]
