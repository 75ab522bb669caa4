"""Step 2 from both ends: shares with commitments go out; what comes in is checked before anything is masked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fedddpm_protocol.errors import DuplicateError, ReflectedShareError, ShareError
from fedddpm_protocol.primitives import canonical, keys
from fedddpm_protocol.primitives.shamir import RandomBytes, split
from fedddpm_protocol.session import sealed
from fedddpm_protocol.session.cohort import Cohort, Sharing
from fedddpm_protocol.session.commitments import (
    NONCE_BYTES,
    channel_key_commitment,
    deal_hash,
    share_commitment,
)
from fedddpm_protocol.session.session_secrets import DealtPair, DealtShare, SessionSecrets
from fedddpm_protocol.wire.messages import (
    Accusation,
    AccusationBody,
    Accused,
    Commitments,
    Deal,
    DealBody,
    ShareItem,
    Shares,
)


def deal_shares(
    cohort: Cohort, member: str, identity: keys.SigningKey, held: SessionSecrets, random_bytes: RandomBytes
) -> Shares:
    """Shares of both secrets for everybody, sealed and committed to; the member's own stay in ``held``.

    Drawn in this order: the coefficients of the self mask, those of the mask key, then for each member of the cohort
    two nonces of commitments and, unless it is the dealer itself, one of the seal.
    """
    points = [cohort.point(other) for other in cohort.ids]
    self_mask = split(bytes(held.self_mask), cohort.threshold, points, random_bytes)
    mask_key = split(bytes(held.mask_private), cohort.threshold, points, random_bytes)
    items, lines = [], []
    for other, point in zip(cohort.ids, points, strict=True):
        nonces = random_bytes(NONCE_BYTES), random_bytes(NONCE_BYTES)
        pair = DealtPair(DealtShare(self_mask[point], nonces[0]), DealtShare(mask_key[point], nonces[1]))
        digest = key_commitment = b""
        if other == member:
            held.shares[member] = pair
        else:
            public = cohort.body(other).channel_public_key
            key = sealed.channel_key(bytes(held.channel_private), public, cohort.session_id, member, other, blame=other)
            item = sealed.seal(key, cohort.session_id, member, other, pair, random_bytes(sealed.NONCE_BYTES))
            items.append(ShareItem(sender=member, recipient=other, sealed=item))
            digest = hashlib.sha256(item).digest()
            key_commitment = channel_key_commitment(cohort.session_id, member, other, key)
        commitments = _commitments(cohort.session_id, member, other, pair)
        lines.append(Commitments(other, digest, key_commitment, *commitments))
    body = canonical.encode(DealBody(cohort.session_id, member, tuple(lines)))
    return Shares(items=tuple(items), deal=Deal(body=body, signature=identity.sign("deal", body)))


def open_shares(
    sharing: Sharing, member: str, identity: keys.SigningKey, held: SessionSecrets, items: Sequence[ShareItem]
) -> Accusation | None:
    """Open the items of all other members of U2 into ``held``, each against its dealer's commitments.

    What is not as committed is not kept: then the signed accusation comes back, which is to be sent.

    Raises DuplicateError, ReflectedShareError or ShareError (an item is missing, or not the one that its deal names:
    who delivers them has altered it).
    """
    senders = [item.sender for item in items]
    if len(set(senders)) != len(senders):
        raise DuplicateError("two share items come from the same sender")
    missing = set(sharing.ids) - {member, *senders}
    if missing or not set(senders) <= set(sharing.ids):
        absent = ", ".join(sorted(missing)) or "nobody"
        raise ShareError(f"items and deals are not of the same members; without an item: {absent}", "aggregator")
    cohort, accused = sharing.cohort, []
    for item in sorted(items, key=lambda item: item.sender.encode()):
        if item.recipient != member or item.sender == member:
            raise ReflectedShareError(
                f"a share from {item.sender!r} to {item.recipient!r} was delivered to {member!r}", "aggregator"
            )
        line = sharing.commitments(item.sender, member)
        if hashlib.sha256(item.sealed).digest() != line.sealed:
            raise ShareError(f"the share from {item.sender!r} is not the one that its deal names", "aggregator")
        public = cohort.body(item.sender).channel_public_key
        key = sealed.channel_key(bytes(held.channel_private), public, cohort.session_id, item.sender, member)
        pair = opened_as_dealt(cohort.session_id, item.sender, line, item.sealed, key)
        if pair is None:
            accused.append(Accused(item.sender, deal_hash(sharing.deal(item.sender)), key))
        else:
            held.shares[item.sender] = pair
    if not accused:
        return None
    body = canonical.encode(AccusationBody(cohort.session_id, member, tuple(accused)))
    return Accusation(id=member, body=body, signature=identity.sign("accusation", body))


def key_is_as_committed(session_id: bytes, dealer: str, line: Commitments, key: bytes) -> bool:
    """Whether ``key`` is the one that ``dealer`` committed to in a line of its deal."""
    return channel_key_commitment(session_id, dealer, line.recipient, key) == line.channel_key


def opened_as_dealt(session_id: bytes, dealer: str, line: Commitments, item: bytes, key: bytes) -> DealtPair | None:
    """The pair in a sealed item; None unless key and shares are all as a line of the deal commits to."""
    if not key_is_as_committed(session_id, dealer, line, key):
        return None
    try:
        pair = sealed.open_sealed(item, key, session_id, dealer, line.recipient)
    except ShareError:
        return None
    return pair if _commitments(session_id, dealer, line.recipient, pair) == (line.self_mask, line.mask_sk) else None


def _commitments(session_id: bytes, dealer: str, recipient: str, pair: DealtPair) -> tuple[bytes, bytes]:
    """To both shares of a pair."""
    self_mask, mask_sk = pair.self_mask, pair.mask_sk
    return (
        share_commitment(session_id, dealer, recipient, "self_mask", self_mask.nonce, self_mask.share),
        share_commitment(session_id, dealer, recipient, "mask_sk", mask_sk.nonce, mask_sk.share),
    )
