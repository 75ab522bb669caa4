"""Masked chunks to an opened vector, each chunk on its own.

For every chunk: sum of the survivors' bytes minus the masks. By default threads of this process do it. Every thread has
a stretch of neighbouring chunks, because mask streams are fastest when they are read on; cipher, hash and sums of long
arrays let other threads run meanwhile. Memory holds one chunk of one upload and one sum a thread, and from an object
store the few chunks that are read ahead, however long the vector and however large the cohort.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from fedddpm_aggregator.vectors.stored_chunks import DamagedUploadError, StoredChunks
from fedddpm_protocol.agreement.chunks import chunk_bytes, chunk_count, segment_digest
from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.session.coordinator import MaskPlan

__all__ = ["DamagedUploadError", "Look", "ReadChunk", "Reducer", "ThreadReducer", "WriteAt", "open_segment"]

ReadChunk = Callable[[str, int], bytes | memoryview]  # (member, index) -> packed bytes
WriteAt = Callable[[int, bytes], None]  # (byte offset, packed bytes); called from several threads
Look = Callable[[ring.Words], object]  # at the opened words of one chunk; by one thread at a time


class Reducer(Protocol):
    """Opens segments from stored uploads, wherever that is computed: the bytes are the same."""

    def open_segment(
        self,
        masks: MaskPlan,
        segment: SegmentSpec,
        chunk_coordinates: int,
        chunks: StoredChunks,
        write_at: WriteAt,
        look: Look,
    ) -> bytes:
        """As :func:`open_segment`, of ``chunks``."""

    def close(self) -> None:
        """Let go of what it holds; no segment is being opened any more."""


class ThreadReducer:
    """Threads of this process."""

    def __init__(self, threads: int = 2) -> None:
        self.threads = threads

    def open_segment(
        self,
        masks: MaskPlan,
        segment: SegmentSpec,
        chunk_coordinates: int,
        chunks: StoredChunks,
        write_at: WriteAt,
        look: Look,
    ) -> bytes:
        """As :func:`open_segment`, of ``chunks``."""
        with chunks.ahead(masks.survivors.ids) as read:
            return open_segment(masks, segment, chunk_coordinates, read, write_at, self.threads, look)

    def close(self) -> None:
        """Nothing is held between segments."""


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
    every = range(chunk_count(segment, chunk_coordinates))
    digests = open_chunks(masks, segment, chunk_coordinates, every, read_chunk, write_at, threads, look)
    return segment_digest(segment, chunk_coordinates, digests)


def open_chunks(
    masks: MaskPlan,
    segment: SegmentSpec,
    chunk_coordinates: int,
    indices: range,
    read_chunk: ReadChunk,
    write_at: WriteAt,
    threads: int,
    look: Look,
) -> list[bytes]:
    """As :func:`open_segment` for neighbouring chunks: their SHA-256, in order."""
    full_bytes = chunk_bytes(segment, chunk_coordinates, 0)
    failed, looking = threading.Event(), threading.Lock()

    def open_stretch(stretch: range) -> list[bytes]:
        opener, digests = masks.opener(segment), []
        try:
            for index in stretch:
                if failed.is_set():
                    break
                words = opener.open(index, (read_chunk(member, index) for member in masks.survivors.ids))
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
        return [digest for stretch in pool.map(open_stretch, _stretches(indices, threads)) for digest in stretch]


def _stretches(indices: range, threads: int) -> Iterator[range]:
    """Neighbouring chunks for each thread, as many for each as can be."""
    cuts = [len(indices) * thread // threads for thread in range(threads + 1)]
    return (indices[first:last] for first, last in itertools.pairwise(cuts) if first < last)
