"""A member's two shares, sealed to one other member.

The channel key and the additional data both name sender and recipient in order, so an item cannot be reflected or
misrouted. The hash of an item stands in its dealer's signed deal.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedddpm_protocol.errors import ShareError
from fedddpm_protocol.primitives import keys
from fedddpm_protocol.primitives.canonical import kdf, label
from fedddpm_protocol.session.session_secrets import DealtPair, DealtShare

NONCE_BYTES = 12
PART_BYTES = 32  # of a share, and of the nonce of its commitment


def channel_key(
    private: bytes, public: bytes, session_id: bytes, sender: str, recipient: str, blame: str | None = None
) -> bytes:
    """``KDF(X25519(c_i, c_j), sid, "chan", i, j)``; MalformedError for a low-order ``public``, blaming its owner."""
    shared = keys.x25519_shared(private, public, blame)
    return kdf(shared, session_id, "chan", sender.encode(), recipient.encode())


def seal(key: bytes, session_id: bytes, sender: str, recipient: str, pair: DealtPair, nonce: bytes) -> bytes:
    """``nonce, AES-256-GCM(self-mask share, mask-key share, nonce of the first, nonce of the second)``: 156 bytes."""
    plain = pair.self_mask.share + pair.mask_sk.share + pair.self_mask.nonce + pair.mask_sk.nonce
    return nonce + AESGCM(key).encrypt(nonce, plain, _associated(session_id, sender, recipient))


def open_sealed(sealed: bytes, key: bytes, session_id: bytes, sender: str, recipient: str) -> DealtPair:
    """What is in a sealed item; ShareError if it does not open."""
    try:
        plain = AESGCM(key).decrypt(
            sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _associated(session_id, sender, recipient)
        )
    except InvalidTag as error:
        raise ShareError("a sealed share does not open", sender) from error
    if len(plain) != 4 * PART_BYTES:
        raise ShareError(f"a sealed share holds {len(plain)} bytes instead of {4 * PART_BYTES}", sender)
    self_mask, mask_sk, *nonces = (plain[start : start + PART_BYTES] for start in range(0, len(plain), PART_BYTES))
    return DealtPair(DealtShare(self_mask, nonces[0]), DealtShare(mask_sk, nonces[1]))


def _associated(session_id: bytes, sender: str, recipient: str) -> bytes:
    return label("shares", session_id, sender.encode(), recipient.encode())
