"""Opening a segment: the survivors' sum whatever the ring and the number of threads, in little memory."""

from __future__ import annotations

import hashlib
import threading
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from tests.protocol.sessions import inputs_for, make_participants, make_plan, make_roster, mask_all

from fedddpm_aggregator.reduction import DamagedUploadError, open_segment
from fedddpm_protocol import ring
from fedddpm_protocol.chunks import chunk_bytes, segment_digest
from fedddpm_protocol.coordinator import MaskPlan, recover
from fedddpm_protocol.spec import SegmentSpec
from fedddpm_protocol.spent import SpentLog

WORDS, CHUNK = 1000, 64


class Uploaded:
    """Four of five members uploaded ``part`` and answered; the fifth dropped after its shares."""

    def __init__(self, bits: int, words: int = WORDS, chunk: int = CHUNK) -> None:
        self.segment, self.chunk = SegmentSpec("part", bits, words, "fixed-point"), chunk
        segments = (self.segment, SegmentSpec("part.weights", 32, 3, "integers"))
        roster = make_roster(5)
        machines = make_participants(roster, make_plan(roster, segments=segments, chunk_coordinates=chunk))
        joins = [machine.join(1) for machine in machines.values()]
        shares = [machine.receive_cohort(joins) for machine in machines.values()]
        self.uploads, digests, self.total = {}, {}, ring.zeros(words, bits)
        for name in list(machines)[:4]:
            machines[name].receive_shares([i for s in shares for i in s.items if i.recipient == name])
            inputs = inputs_for(name, segments)
            ring.add_in_place(self.total, inputs["part"], bits)
            self.uploads[name] = mask_all(machines[name], inputs)["part"]
            machines[name].finish_upload()
            digests[name] = machines[name]._upload_digest
        sharing = machines["site-0"]._sharing
        assert sharing is not None
        survivors = sharing.survivors(digests)
        alive = [machines[name] for name in self.uploads]
        confirmations = [machine.receive_survivors(survivors.message.survivors) for machine in alive]
        log = SpentLog()
        unmasks = [machine.receive_confirmations(confirmations, log.commit) for machine in alive]
        self.masks: MaskPlan = recover(survivors, unmasks)

    def read(self, member: str, index: int) -> bytes:
        return self.uploads[member][index]

    def open(
        self, threads: int, look: Callable[[ring.Words], object], read: Callable[[str, int], bytes] | None = None
    ) -> tuple[bytes, bytes]:
        """Packed sum and its digest."""
        packed = bytearray(ring.packed_bytes(self.segment.coordinates, self.segment.bits))

        def write_at(offset: int, data: bytes) -> None:
            packed[offset : offset + len(data)] = data

        digest = open_segment(self.masks, self.segment, self.chunk, read or self.read, write_at, threads, look)
        return bytes(packed), digest


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
