"""What a member holds for one session and must forget: never written, never shown."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(repr=False)
class SessionSecrets:
    """Everything that must be forgotten; mutable so that it can be overwritten."""

    channel_private: bytearray
    mask_private: bytearray
    self_mask: bytearray
    shares: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)  # member -> its (self mask, mask key) share

    def forget(self) -> None:
        """Overwrite the keys, as far as Python lets one, and drop the shares."""
        for secret in (self.channel_private, self.mask_private, self.self_mask):
            secret[:] = bytes(len(secret))
        self.shares.clear()
