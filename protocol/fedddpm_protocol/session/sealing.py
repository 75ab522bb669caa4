"""Sealing to a long-lived key: an ephemeral X25519 key a text, and AES-256-GCM under what the two share.

The key that a text is sealed with is used once, so its nonce is constant. What a text is (tag and fields) is bound to
it twice, in the key and beside the text: it opens as nothing else.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives import keys
from fedddpm_protocol.primitives.canonical import kdf, label
from fedddpm_protocol.primitives.shamir import RandomBytes

_NONCE = bytes(12)


def seal_to(public: bytes, tag: str, fields: tuple[bytes, ...], plain: bytes, random_bytes: RandomBytes) -> bytes:
    """``e, AES-256-GCM(KDF(X25519(e, public), e, tag, public, x..), plain)``; MalformedError for a low-order key."""
    ephemeral = random_bytes(keys.KEY_BYTES)
    shown = keys.x25519_public(ephemeral)
    key = _key(keys.x25519_shared(ephemeral, public), shown, public, tag, fields)
    return shown + AESGCM(key).encrypt(_NONCE, plain, label(tag, *fields))


def unseal(key: keys.SealingKey, tag: str, fields: tuple[bytes, ...], sealed: bytes) -> bytes:
    """What was sealed as this to ``key``; MalformedError if it was not, or was altered."""
    shown = sealed[: keys.KEY_BYTES]
    shared = keys.x25519_shared(key.private, shown)
    try:
        opening = AESGCM(_key(shared, shown, key.public_key, tag, fields))
        return opening.decrypt(_NONCE, sealed[keys.KEY_BYTES :], label(tag, *fields))
    except (InvalidTag, ValueError) as error:
        happened = "what was sealed does not open: it is for another key, of another place, or damaged"
        raise MalformedError(happened) from error


def _key(shared: bytes, shown: bytes, public: bytes, tag: str, fields: tuple[bytes, ...]) -> bytes:
    return kdf(shared, shown, tag, public, *fields)
