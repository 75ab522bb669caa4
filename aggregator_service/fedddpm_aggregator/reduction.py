"""Masked chunks to an opened vector, each chunk on its own.

For every chunk: sum of the survivors' bytes minus the masks. Chunks are independent, so a thread pool works on a few
at a time and memory holds a few chunks, however long the vector and however large the cohort.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from fedddpm_protocol import ring
from fedddpm_protocol.chunks import chunk_bytes, chunk_count, segment_digest
from fedddpm_protocol.coordinator import MaskPlan
from fedddpm_protocol.spec import SegmentSpec

ReadChunk = Callable[[str, int], bytes]  # (member, index) -> packed bytes
WriteAt = Callable[[int, bytes], None]  # (byte offset, packed bytes); called from several threads
Look = Callable[[ring.Words], object]  # at the opened words of one chunk; called from several threads


class DamagedUploadError(Exception):
    """A stored chunk is gone or no longer what its member uploaded."""


def open_segment(
    masks: MaskPlan,
    segment: SegmentSpec,
    chunk_coordinates: int,
    read_chunk: ReadChunk,
    write_at: WriteAt,
    threads: int,
    look: Look = lambda _: None,
) -> bytes:
    """Write the opened segment, packed, through ``write_at``; returns its segment digest.

    ``look`` sees every chunk's words, in any order. ``read_chunk`` raises DamagedUploadError for a chunk that is not
    there any more as it was sent.
    """
    full_bytes = chunk_bytes(segment, chunk_coordinates, 0)

    def one(index: int) -> bytes:
        words = masks.open_chunk(segment, index, _chunks(masks, index, read_chunk))
        look(words)
        packed = ring.pack(words, segment.bits)
        write_at(index * full_bytes, packed)
        return hashlib.sha256(packed).digest()

    indices = range(chunk_count(segment, chunk_coordinates))
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="reduce") as pool:
        digests = list(pool.map(one, indices))
    return segment_digest(segment, chunk_coordinates, digests)


def _chunks(masks: MaskPlan, index: int, read_chunk: ReadChunk) -> Iterator[bytes]:
    for member in masks.survivors.ids:
        yield read_chunk(member, index)
