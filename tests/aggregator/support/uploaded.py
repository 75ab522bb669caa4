"""A masked segment whose survivors have answered, ready to be opened."""

from __future__ import annotations

from collections.abc import Callable

from tests.protocol.support.sessions import inbox_of, inputs_for, make_participants, make_plan, make_roster, mask_all

from fedddpm_aggregator.blobs.interface import Blobs
from fedddpm_aggregator.reduction.threads import open_segment
from fedddpm_aggregator.vectors.stored_chunks import StoredChunks, chunk_blob, session_folder, with_checksum
from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.session.coordinator import MaskPlan, recover
from fedddpm_protocol.session.spent import SpentLog

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
            machines[name].receive_shares(*inbox_of(name, shares))
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
        unmasks = [machine.receive_confirmations(confirmations, SpentLog().commit) for machine in alive]
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

    def stored(self, blobs: Blobs, name: str = "00") -> StoredChunks:
        """The uploads in ``blobs``, as the aggregator keeps them."""
        folder = session_folder(name, "part")
        for member, chunks in self.uploads.items():
            for index, data in enumerate(chunks):
                blob = chunk_blob(folder, member, "part", index)
                blobs.put(blob, with_checksum(blob, data))
        return StoredChunks(blobs, folder, "part")
