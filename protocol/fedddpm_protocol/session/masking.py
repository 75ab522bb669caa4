"""What covers one member's words: its self mask, and a mask with each other sharer."""

from __future__ import annotations

from collections.abc import Sequence

from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.primitives.keystream import MaskStream, Scratch
from fedddpm_protocol.session import mask_seeds
from fedddpm_protocol.session.cohort import Sharing

Stream = tuple[MaskStream, int]  # and its sign


def mask_streams(
    sharing: Sharing, member: str, mask_private: bytes, self_mask: bytes, segment: SegmentSpec
) -> list[Stream]:
    """The masks of ``member`` for a segment: of two members the lower id (bytewise) adds theirs."""
    session_id = sharing.cohort.session_id
    own = mask_seeds.self_seed(self_mask, session_id, member, sharing.hu2)
    streams = [(MaskStream(own, segment.name, segment.bits), 1)]
    for other in sharing.ids:
        if other != member:
            peer = sharing.cohort.body(other).mask_public_key
            seed = mask_seeds.pair_seed(mask_private, peer, session_id, member, other, sharing.hu2)
            sign = 1 if member.encode() < other.encode() else -1
            streams.append((MaskStream(seed, segment.name, segment.bits), sign))
    return streams


def masked(words: ring.Words, start: int, streams: Sequence[Stream], segment: SegmentSpec, scratch: Scratch) -> bytes:
    """Packed masked words of a segment from word ``start`` on; ``words`` is overwritten."""
    for stream, sign in streams:
        stream.combine(words, start, sign, scratch)
    ring.reduce_in_place(words, segment.bits)
    return ring.pack(words, segment.bits)
