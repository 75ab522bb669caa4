"""Masked chunks as they lie in the blob store: their names, and a checksum behind their bytes.

A chunk's SHA-256, which its member signed for, is checked once, when it arrives. In the store a checksum stands behind
it that costs a tenth of that: it finds what disks do to files, and blobs under a wrong name, before they are summed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import xxhash

from fedddpm_aggregator.blobs.interface import Blobs

UPLOADS = "uploads"
_CHECKSUM_BYTES = 16


class DamagedUploadError(Exception):
    """A stored chunk is gone or no longer what its member uploaded."""


def upload_folder(spec_hash: str) -> str:
    """Where the single uploads of an attempt lie until they are scrubbed."""
    return f"{UPLOADS}/{spec_hash}"


def session_folder(spec_hash: str, session: str) -> str:
    """Where those of one session lie."""
    return f"{upload_folder(spec_hash)}/{session}"


def chunk_blob(folder: str, member: str, segment: str, index: int) -> str:
    """Name of one member's chunk; ``folder`` is its session's."""
    return f"{folder}/{member}/{segment}/{index}"


def with_checksum(name: str, data: bytes) -> bytes:
    """What is stored for the chunk ``data`` under ``name``."""
    return data + _checksum(name, data)


@dataclass(frozen=True)
class StoredChunks:
    """The uploads of one segment of a session."""

    blobs: Blobs
    folder: str  # of the session
    segment: str

    def read(self, member: str, index: int) -> memoryview:
        """The bytes of a chunk as they arrived; DamagedUploadError if they are gone or not what was stored."""
        name = chunk_blob(self.folder, member, self.segment, index)
        try:
            raw = memoryview(self.blobs.read(name))
        except FileNotFoundError:
            raw = memoryview(b"")
        data = raw[:-_CHECKSUM_BYTES]
        if _checksum(name, data) != raw[-_CHECKSUM_BYTES:]:
            raise DamagedUploadError(f"the uploaded chunk {name} is damaged in the aggregator's storage; check it")
        return data

    @contextlib.contextmanager
    def ahead(self, members: Sequence[str]) -> Iterator[Callable[[str, int], memoryview]]:
        """:meth:`read` for one who asks for the chunks of ``members`` in this order, index by index.

        Where every read is a round trip, those that follow are under way meanwhile: a few chunks for every index that
        is being read.
        """
        most = self.blobs.reads_at_once
        if most < 2:
            yield self.read
            return
        with ThreadPoolExecutor(most, thread_name_prefix="read-ahead") as pool:
            try:
                yield _ReadAhead(self, members, pool, most).read
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


class _ReadAhead:
    """Reads under way, by member and index. An index is read by one thread."""

    def __init__(self, chunks: StoredChunks, members: Sequence[str], pool: ThreadPoolExecutor, most: int) -> None:
        self._chunks, self._members, self._pool, self._most = chunks, members, pool, most
        self._places = {member: place for place, member in enumerate(members)}
        self._under_way: dict[tuple[str, int], Future[memoryview]] = {}

    def read(self, member: str, index: int) -> memoryview:
        """As :meth:`StoredChunks.read`."""
        place = self._places[member]
        for following in self._members[place : place + self._most]:
            if (following, index) not in self._under_way:
                self._under_way[following, index] = self._pool.submit(self._chunks.read, following, index)
        return self._under_way.pop((member, index)).result()


def _checksum(name: str, data: bytes | memoryview) -> bytes:
    whole = xxhash.xxh3_128(data)
    whole.update(name.encode())
    return whole.digest()
