"""What a member holds for one session and must forget: never shown, and written only sealed to the auditor."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives import keys
from fedddpm_protocol.primitives.shamir import RandomBytes
from fedddpm_protocol.session.sealing import seal_to, unseal
from fedddpm_protocol.wire.messages import MaskKind

_SEALED = "audit-secrets"


@dataclass(frozen=True, repr=False)
class DealtShare:
    """One share, and the nonce that opens its dealer's commitment; 32 bytes each."""

    share: bytes
    nonce: bytes


@dataclass(frozen=True, repr=False)
class DealtPair:
    """What one dealer gave to one member: a share of its self mask and one of its mask key."""

    self_mask: DealtShare
    mask_sk: DealtShare

    def of(self, kind: MaskKind) -> DealtShare:
        """The share of ``kind``."""
        return self.self_mask if kind == "self_mask" else self.mask_sk


@dataclass(repr=False)
class SessionSecrets:
    """Everything that must be forgotten; mutable so that it can be overwritten."""

    channel_private: bytearray
    mask_private: bytearray
    self_mask: bytearray
    shares: dict[str, DealtPair] = field(default_factory=dict)  # by dealer

    def forget(self) -> None:
        """Overwrite the keys, as far as Python lets one, and drop the shares."""
        for secret in (self.channel_private, self.mask_private, self.self_mask):
            secret[:] = bytes(len(secret))
        self.shares.clear()


def seal_secrets(
    auditor: bytes, session_id: bytes, member: str, held: SessionSecrets, random_bytes: RandomBytes
) -> bytes:
    """Mask key and self mask (32 bytes each), sealed to the auditor's X25519 key for this session and member."""
    plain = bytes(held.mask_private) + bytes(held.self_mask)
    return seal_to(auditor, _SEALED, (session_id, member.encode()), plain, random_bytes)


def unseal_secrets(key: keys.SealingKey, session_id: bytes, member: str, sealed: bytes) -> tuple[bytes, bytes]:
    """Mask key and self mask; MalformedError if they were not sealed to ``key``, for this session and member."""
    plain = unseal(key, _SEALED, (session_id, member.encode()), sealed)
    if len(plain) != 2 * keys.KEY_BYTES:
        raise MalformedError(f"sealed secrets hold {len(plain)} bytes instead of {2 * keys.KEY_BYTES}")
    return plain[: keys.KEY_BYTES], plain[keys.KEY_BYTES :]
