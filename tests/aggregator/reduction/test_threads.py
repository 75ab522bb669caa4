"""Opening a segment: the survivors' sum whatever the ring and the number of threads, in little memory."""

from __future__ import annotations

import hashlib
import threading
import tracemalloc

import numpy as np
import pytest
from tests.aggregator.support.uploaded import CHUNK, Uploaded

from fedddpm_aggregator.reduction.threads import DamagedUploadError, open_segment
from fedddpm_protocol.agreement.chunks import chunk_bytes, segment_digest
from fedddpm_protocol.primitives import ring


@pytest.mark.parametrize("bits", [6, 8, 12, 32])
def test_any_number_of_threads_gives_the_same_sum(bits: int) -> None:
    uploaded = Uploaded(bits)
    expected = ring.pack(uploaded.total, bits)
    for threads in (1, 2, 3, 40):
        seen, lock = [], threading.Lock()

        def look(words: ring.Words, seen: list[int] = seen, lock: threading.Lock = lock) -> None:
            with lock:
                seen.append(int(words.sum(dtype=np.uint64)))

        packed, digest = uploaded.open(threads, look)
        assert packed == expected
        assert len(seen) == 16
        assert sum(seen) == int(uploaded.total.sum(dtype=np.uint64))
        assert digest == segment_digest(uploaded.segment, CHUNK, digests_of(uploaded, packed))


def digests_of(uploaded: Uploaded, packed: bytes) -> list[bytes]:
    step = chunk_bytes(uploaded.segment, CHUNK, 0)
    return [hashlib.sha256(packed[start : start + step]).digest() for start in range(0, len(packed), step)]


def test_a_damaged_chunk_stops_every_thread() -> None:
    uploaded, reads = Uploaded(32), []

    def damaged(member: str, index: int) -> bytes:
        reads.append(index)
        if index == 0:
            raise DamagedUploadError("gone")
        return uploaded.read(member, index)

    with pytest.raises(DamagedUploadError, match="gone"):
        uploaded.open(1, lambda words: None, damaged)
    assert reads == [0]
    with pytest.raises(DamagedUploadError, match="gone"):
        uploaded.open(3, lambda words: None, damaged)


def test_opening_takes_room_for_chunks_not_for_the_vector() -> None:
    words, chunk = 2**20, 2**14
    uploaded = Uploaded(8, words, chunk)
    sizes = []

    def read(member: str, index: int) -> bytes:
        return bytes(bytearray(uploaded.read(member, index)))  # as read anew from a disk

    tracemalloc.start()
    try:
        open_segment(uploaded.masks, uploaded.segment, chunk, read, lambda _, data: sizes.append(len(data)), 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) == words
    assert peak < words  # two threads, each with scratch of the masks, its sum and a chunk of one upload
