"""The seeds of the pairwise and self masks (Bonawitz et al. 2017, double masking)."""

from __future__ import annotations

from fedddpm_protocol.primitives import keys
from fedddpm_protocol.primitives.canonical import kdf, tagged_hash


def pair_seed(private: bytes, public: bytes, session_id: bytes, one: str, other: str, hu2: bytes) -> bytes:
    """Seed shared by two members: the lower id (bytewise) adds its mask, the higher subtracts it."""
    low, high = sorted((one.encode(), other.encode()))
    return kdf(keys.x25519_shared(private, public), session_id, "mask", low, high, hu2)


def self_seed(self_mask: bytes, session_id: bytes, member: str, hu2: bytes) -> bytes:
    """Seed of a member's own mask, removed by t shares once it is a survivor."""
    return kdf(self_mask, session_id, "self", member.encode(), hu2)


def self_mask_commitment(member: str, self_mask: bytes) -> bytes:
    """``H("bcommit", i, b_i)``: lets everybody recognise the right reconstruction."""
    return tagged_hash("bcommit", member.encode(), self_mask)
