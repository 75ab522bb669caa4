"""What a dealer commits to, and how a commitment is opened: each is a hash over what it is of and for whom.

Two commitments for the two shares of a recipient, because only one of them is ever revealed. The one to the channel key
lets a recipient show an item that does not open: AES-GCM alone would let a dealer find two keys that both open it.
"""

from __future__ import annotations

from fedddpm_protocol.primitives.canonical import tagged_hash
from fedddpm_protocol.wire.messages import Deal, MaskKind

NONCE_BYTES = 32


def share_commitment(
    session_id: bytes, dealer: str, recipient: str, kind: MaskKind, nonce: bytes, share: bytes
) -> bytes:
    """``H("share-commitment", sid, dealer, recipient, kind, nonce, share)``."""
    names = (dealer.encode(), recipient.encode(), kind.encode())
    return tagged_hash("share-commitment", session_id, *names, nonce, share)


def channel_key_commitment(session_id: bytes, dealer: str, recipient: str, key: bytes) -> bytes:
    """``H("channel-key", sid, dealer, recipient, key)``."""
    return tagged_hash("channel-key", session_id, dealer.encode(), recipient.encode(), key)


def deal_hash(deal: Deal) -> bytes:
    """``H("deal", body)``: what hU2 binds everybody to."""
    return tagged_hash("deal", deal.body)
