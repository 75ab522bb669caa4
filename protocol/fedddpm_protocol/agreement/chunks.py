"""How a segment is cut into chunks, and the digests over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.primitives.canonical import tagged_hash, u64


def chunk_count(segment: SegmentSpec, chunk_coordinates: int) -> int:
    """Chunks of a segment; the last may be short and is not padded."""
    return -(-segment.coordinates // chunk_coordinates)


def chunk_span(segment: SegmentSpec, chunk_coordinates: int, index: int) -> tuple[int, int]:
    """First coordinate and number of coordinates of chunk ``index``; MalformedError if there is no such chunk."""
    if not 0 <= index < chunk_count(segment, chunk_coordinates):
        raise MalformedError(f"segment {segment.name!r} has no chunk {index}")
    start = index * chunk_coordinates
    return start, min(chunk_coordinates, segment.coordinates - start)


def chunk_bytes(segment: SegmentSpec, chunk_coordinates: int, index: int) -> int:
    """Exact size of a packed chunk in bytes."""
    return ring.packed_bytes(chunk_span(segment, chunk_coordinates, index)[1], segment.bits)


def segment_digest(segment: SegmentSpec, chunk_coordinates: int, chunk_sha256s: Sequence[bytes]) -> bytes:
    """``H("segment", name, bits, coordinates, coordinates a chunk, SHA-256 of each chunk..)``."""
    expected = chunk_count(segment, chunk_coordinates)
    if len(chunk_sha256s) != expected or any(len(digest) != 32 for digest in chunk_sha256s):
        raise MalformedError(f"segment {segment.name!r} needs {expected} chunk digests of 32 bytes")
    sizes = (u64(segment.bits), u64(segment.coordinates), u64(chunk_coordinates))
    return tagged_hash("segment", segment.name.encode(), *sizes, *chunk_sha256s)


def upload_digest(
    member: str, segments: Sequence[SegmentSpec], chunk_coordinates: int, chunk_sha256s: Mapping[str, Sequence[bytes]]
) -> bytes:
    """``H("y", id, segment digests in name order)``; MalformedError unless every segment is there and no other."""
    ordered = sorted(segments, key=lambda segment: segment.name.encode())
    if set(chunk_sha256s) != {segment.name for segment in ordered}:
        raise MalformedError("an upload must name exactly the segments of its part", member)
    digests = (segment_digest(segment, chunk_coordinates, chunk_sha256s[segment.name]) for segment in ordered)
    return tagged_hash("y", member.encode(), *digests)
