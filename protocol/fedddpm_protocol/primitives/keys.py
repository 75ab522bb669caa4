"""Long-lived Ed25519 identities, short-lived X25519 session keys, and an auditor's X25519 key.

Signatures cover ``LP(prefix + tag, message)``, so a signature for one purpose is never valid for another.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fedddpm_protocol.errors import MalformedError, SignatureError
from fedddpm_protocol.primitives.canonical import label

KEY_BYTES = 32
_FIELD_PRIME = 2**255 - 19
_PROBE = bytes(KEY_BYTES - 1) + b"\x40"  # any scalar: after clamping all of them send a low-order point to zero


@dataclass(frozen=True, repr=False)
class SigningKey:
    """An Ed25519 private key; never shown by ``repr``."""

    seed: bytes  # 32 bytes

    @classmethod
    def generate(cls) -> SigningKey:
        """A fresh key from the system's CSPRNG."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    def __post_init__(self) -> None:
        if len(self.seed) != KEY_BYTES:
            raise MalformedError(f"an Ed25519 private key has {len(self.seed)} bytes instead of {KEY_BYTES}")

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public_key.hex()})"

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()

    def sign(self, tag: str, message: bytes) -> bytes:
        """``Sign(tag, message)``, 64 bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(label(tag, message))


@dataclass(frozen=True, repr=False)
class SealingKey:
    """A long-lived X25519 private key that others seal to; never shown by ``repr``."""

    private: bytes  # 32 bytes

    @classmethod
    def generate(cls) -> SealingKey:
        """A fresh key from the system's CSPRNG."""
        return cls(X25519PrivateKey.generate().private_bytes_raw())

    def __post_init__(self) -> None:
        if len(self.private) != KEY_BYTES:
            raise MalformedError(f"an X25519 private key has {len(self.private)} bytes instead of {KEY_BYTES}")

    def __repr__(self) -> str:
        return f"SealingKey(public={self.public_key.hex()})"

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        return x25519_public(self.private)


def verify(public_key: bytes, tag: str, message: bytes, signature: bytes, blame: str | None = None) -> None:
    """Raise SignatureError unless ``signature`` is ``Sign(tag, message)`` under ``public_key``."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, label(tag, message))
    except (InvalidSignature, ValueError) as error:
        raise SignatureError(f"the {tag} signature does not verify", blame) from error


def fingerprint(public_key: bytes) -> str:
    """SHA-256 of a public key in groups of four hex digits, short enough to be read out on the telephone."""
    digest = hashlib.sha256(public_key).hexdigest()[:32]
    return "-".join(digest[start : start + 4] for start in range(0, len(digest), 4))


def x25519_public(private: bytes) -> bytes:
    """The X25519 public key of 32 raw private bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def require_session_key(public: bytes, blame: str | None = None) -> None:
    """MalformedError unless ``public`` is a canonical X25519 key of full order, as every honest session key is.

    Another encoding of the same point would pass for a different key; a low-order one makes every secret zero.
    """
    if len(public) == KEY_BYTES and int.from_bytes(public, "little") >= _FIELD_PRIME:
        raise MalformedError("an X25519 public key is not in its canonical form", blame)
    x25519_shared(_PROBE, public, blame)


def x25519_shared(private: bytes, public: bytes, blame: str | None = None) -> bytes:
    """The raw X25519 secret (RFC 7748); MalformedError for a low-order or misshapen public key."""
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise MalformedError("an X25519 public key is of low order or misshapen", blame) from error
