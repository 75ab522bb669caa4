"""A member's two shares, sealed to one other member and signed.

The channel key and the additional data both name sender and recipient in order, so an item cannot be reflected or
misrouted.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedddpm_protocol.errors import ReflectedShareError, ShareError
from fedddpm_protocol.primitives import keys
from fedddpm_protocol.primitives.canonical import kdf, label, lp
from fedddpm_protocol.wire.messages import ShareItem

NONCE_BYTES = 12
SHARE_BYTES = 32


def channel_key(
    private: bytes, public: bytes, session_id: bytes, sender: str, recipient: str, blame: str | None = None
) -> bytes:
    """``KDF(X25519(c_i, c_j), sid, "chan", i, j)``; MalformedError for a low-order ``public``, blaming its owner."""
    shared = keys.x25519_shared(private, public, blame)
    return kdf(shared, session_id, "chan", sender.encode(), recipient.encode())


def _signed_bytes(session_id: bytes, sender: str, recipient: str, sealed: bytes) -> bytes:
    return lp(session_id, sender.encode(), recipient.encode(), sealed)


def seal(
    key: bytes,
    identity: keys.SigningKey,
    session_id: bytes,
    sender: str,
    recipient: str,
    shares: tuple[bytes, bytes],
    nonce: bytes,
) -> ShareItem:
    """Seal (share of the self mask, share of the mask key), 32 bytes each, with AES-256-GCM."""
    associated = label("shares", session_id, sender.encode(), recipient.encode())
    sealed = nonce + AESGCM(key).encrypt(nonce, shares[0] + shares[1], associated)
    signature = identity.sign("share", _signed_bytes(session_id, sender, recipient, sealed))
    return ShareItem(sender=sender, recipient=recipient, sealed=sealed, signature=signature)


def verify_item(item: ShareItem, public_key: bytes, session_id: bytes) -> None:
    """Raise SignatureError unless the sender's identity signed this item for this session and recipient."""
    signed = _signed_bytes(session_id, item.sender, item.recipient, item.sealed)
    keys.verify(public_key, "share", signed, item.signature, item.sender)


def open_item(item: ShareItem, key: bytes, session_id: bytes, recipient: str) -> tuple[bytes, bytes]:
    """The two shares; ReflectedShareError if the item is not for ``recipient``, ShareError if it does not open."""
    if item.recipient != recipient or item.sender == recipient:
        raise ReflectedShareError(
            f"a share from {item.sender!r} to {item.recipient!r} was delivered to {recipient!r}", "aggregator"
        )
    associated = label("shares", session_id, item.sender.encode(), recipient.encode())
    try:
        plain = AESGCM(key).decrypt(item.sealed[:NONCE_BYTES], item.sealed[NONCE_BYTES:], associated)
    except InvalidTag as error:
        raise ShareError("a sealed share does not open", item.sender) from error
    if len(plain) != 2 * SHARE_BYTES:
        raise ShareError(f"a sealed share holds {len(plain)} bytes instead of {2 * SHARE_BYTES}", item.sender)
    return plain[:SHARE_BYTES], plain[SHARE_BYTES:]
