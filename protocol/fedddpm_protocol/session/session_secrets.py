"""What a member holds for one session and must forget: never written, never shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedddpm_protocol.wire.messages import MaskKind


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
