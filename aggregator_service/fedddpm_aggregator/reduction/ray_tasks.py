"""What a Ray worker does for a sum: one stretch of neighbouring chunks, from the blob store to opened bytes."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path

from fedddpm_aggregator.blobs.store_choice import open_blobs
from fedddpm_aggregator.vectors.stored_chunks import StoredChunks
from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.primitives import canonical, ring
from fedddpm_protocol.session.coordinator import SegmentOpener


def release() -> str:
    """What must be the same wherever a sum is opened."""
    return f"{importlib.metadata.version('fedddpm-aggregator')}, {canonical.PROTOCOL}"


@dataclass(frozen=True)
class SumJob:
    """All that a worker needs; it travels as its canonical bytes."""

    release: str
    blobs: str  # URL
    folder: str  # of the session's uploads
    survivors: tuple[str, ...]
    segment: SegmentSpec
    chunk_coordinates: int
    added: tuple[bytes, ...] = field(repr=False)  # seeds of masks that stand in the sum with this sign
    subtracted: tuple[bytes, ...] = field(repr=False)


def open_stretch(job: bytes, first: int, last: int) -> list[bytes]:
    """The opened, packed chunks ``first .. last``.

    Raises:
        RuntimeError: this machine runs another release, or does not see the directory of the blobs.
        DamagedUploadError: a chunk is not there as it was sent.
    """
    work = canonical.decode(SumJob, job)
    if work.release != release():
        raise RuntimeError(f"the worker runs {release()}, the aggregator {work.release}; install the same everywhere")
    if "://" not in work.blobs and not Path(work.blobs).is_dir():
        raise RuntimeError(f"{work.blobs} is no directory here; Ray's workers need a shared file system or s3://")
    seeds = [*((seed, 1) for seed in work.added), *((seed, -1) for seed in work.subtracted)]
    opener = SegmentOpener(seeds, len(work.survivors), work.segment, work.chunk_coordinates)
    chunks = StoredChunks(open_blobs(work.blobs), work.folder, work.segment.name)
    return [
        ring.pack(opener.open(index, (chunks.read(member, index) for member in work.survivors)), work.segment.bits)
        for index in range(first, last)
    ]
