"""Reading uploads ahead: the same chunks in the same order, few at a time, and a damaged one stops the opening."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.aggregator.support.uploaded import Uploaded

from fedddpm_aggregator.blobs.directory import DirectoryBlobs
from fedddpm_aggregator.blobs.interface import Blobs
from fedddpm_aggregator.blobs.store_choice import open_blobs
from fedddpm_aggregator.reduction.threads import DamagedUploadError, ThreadReducer
from fedddpm_aggregator.vectors.stored_chunks import StoredChunks, chunk_blob, with_checksum
from fedddpm_protocol.primitives import ring

MEMBERS, CHUNKS = [f"m{number:02}" for number in range(20)], 3


class Counting(DirectoryBlobs):
    """A directory that is read as if it were far away, and counts how many reads are under way."""

    reads_at_once = 4

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.now, self.most, self.lock = 0, 0, threading.Lock()

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return super().read(name, start, size)
        finally:
            with self.lock:
                self.now -= 1


def stored(blobs: Blobs) -> StoredChunks:
    for member in MEMBERS:
        for index in range(CHUNKS):
            name = chunk_blob("uploads/s", member, "part", index)
            blobs.put(name, with_checksum(name, f"{member}/{index}".encode()))
    return StoredChunks(blobs, "uploads/s", "part")


def read_all(chunks: StoredChunks) -> list[bytes]:
    with chunks.ahead(MEMBERS) as read:
        return [bytes(read(member, index)) for index in range(CHUNKS) for member in MEMBERS]


def test_every_chunk_once_in_order_and_few_at_a_time(tmp_path: Path) -> None:
    blobs = Counting(tmp_path)
    chunks = stored(blobs)
    assert read_all(chunks) == [f"{member}/{index}".encode() for index in range(CHUNKS) for member in MEMBERS]
    assert 1 <= blobs.most <= 4


def test_a_damaged_chunk_stops_the_reading(tmp_path: Path) -> None:
    blobs = Counting(tmp_path)
    chunks = stored(blobs)
    blobs.remove("uploads/s/m07/part/1")
    with pytest.raises(DamagedUploadError, match="uploads/s/m07/part/1"):
        read_all(chunks)
    assert blobs.now == 0


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_sum_from_an_object_store(s3_url: str, threads: int) -> None:
    uploaded, blobs = Uploaded(16), open_blobs(s3_url)
    chunks = uploaded.stored(blobs)
    packed = bytearray(ring.packed_bytes(uploaded.segment.coordinates, uploaded.segment.bits))

    def write_at(offset: int, data: bytes) -> None:
        packed[offset : offset + len(data)] = data

    reducer = ThreadReducer(threads)
    digest = reducer.open_segment(uploaded.masks, uploaded.segment, uploaded.chunk, chunks, write_at, lambda _: None)
    assert (bytes(packed), digest) == uploaded.open(1, lambda _: None)
