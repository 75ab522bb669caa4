"""Masked chunks to an opened vector, each chunk on its own.

For every chunk: sum of the survivors' bytes minus the masks. Every thread has a stretch of neighbouring chunks, because
mask streams are fastest when they are read on; cipher, hash and sums of long arrays let other threads run meanwhile.
Memory holds one chunk of one upload and one sum a thread, however long the vector and however large the cohort.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from fedddpm_protocol import ring
from fedddpm_protocol.chunks import chunk_bytes, chunk_count, segment_digest
from fedddpm_protocol.coordinator import MaskPlan
from fedddpm_protocol.spec import SegmentSpec

ReadChunk = Callable[[str, int], bytes | memoryview]  # (member, index) -> packed bytes
WriteAt = Callable[[int, bytes], None]  # (byte offset, packed bytes); called from several threads
Look = Callable[[ring.Words], object]  # at the opened words of one chunk; by one thread at a time


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
    failed, looking = threading.Event(), threading.Lock()

    def open_stretch(indices: range) -> list[bytes]:
        opener, digests = masks.opener(segment), []
        try:
            for index in indices:
                if failed.is_set():
                    break
                words = opener.open(index, _chunks(masks, index, read_chunk))
                with looking:
                    look(words)
                packed = ring.pack(words, segment.bits)
                write_at(index * full_bytes, packed)
                digests.append(hashlib.sha256(packed).digest())
        except BaseException:
            failed.set()  # the other stretches need not go on
            raise
        return digests

    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="reduce") as pool:
        stretches = list(pool.map(open_stretch, _stretches(chunk_count(segment, chunk_coordinates), threads)))
    return segment_digest(segment, chunk_coordinates, [digest for stretch in stretches for digest in stretch])


def _stretches(chunks: int, threads: int) -> list[range]:
    """Neighbouring chunks for each thread, as many for each as can be."""
    cuts = [chunks * thread // threads for thread in range(threads + 1)]
    return [range(first, last) for first, last in itertools.pairwise(cuts) if first < last]


def _chunks(masks: MaskPlan, index: int, read_chunk: ReadChunk) -> Iterator[bytes | memoryview]:
    for member in masks.survivors.ids:
        yield read_chunk(member, index)
