"""Opened values in their blob, read chunk by chunk: none of what uses them ever holds the whole vector."""

from __future__ import annotations

import hashlib

from fedddpm_aggregator.blobs.interface import Blobs
from fedddpm_protocol.agreement.chunks import chunk_bytes, chunk_count, chunk_span, segment_digest
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.scale import Energy
from fedddpm_protocol.primitives import ring

OPENED = "opened"


def opened_folder(spec_hash: str) -> str:
    """Where the opened values of an attempt lie."""
    return f"{OPENED}/{spec_hash}"


def opened_blob(spec_hash: str, part: str) -> str:
    """Name of the opened, packed values of a session."""
    return f"{opened_folder(spec_hash)}/{part}"


class OpenedValues:
    """The opened values of one session, packed in a blob that is whole."""

    def __init__(self, blobs: Blobs, spec: RoundSpec, part: str) -> None:
        self._blobs, self._name = blobs, opened_blob(spec.hash.hex(), part)
        self._part, self._chunk_coordinates = spec.part(part), spec.chunk_coordinates
        self._segment = self._part.values
        self._full_bytes = chunk_bytes(self._segment, self._chunk_coordinates, 0)

    def packed(self, index: int) -> bytes:
        """The bytes of one chunk; FileNotFoundError before the vector was opened."""
        size = chunk_bytes(self._segment, self._chunk_coordinates, index)
        return self._blobs.read(self._name, index * self._full_bytes, size)

    def chunk(self, index: int) -> ring.Words:
        """The ring words of one chunk; MalformedError if the file is too short."""
        return self._words(index, self.packed(index))

    def measure(self) -> tuple[bytes, Energy]:
        """Segment digest and energy of the whole vector."""
        energy, digests = Energy(self._part), []
        for index in range(chunk_count(self._segment, self._chunk_coordinates)):
            packed = self.packed(index)
            digests.append(hashlib.sha256(packed).digest())
            energy.add(self._words(index, packed))
        return segment_digest(self._segment, self._chunk_coordinates, digests), energy

    def _words(self, index: int, packed: bytes) -> ring.Words:
        count = chunk_span(self._segment, self._chunk_coordinates, index)[1]
        return ring.unpack(packed, self._segment.bits, count)
