"""Sums opened on a Ray cluster of two workers: the bytes of the thread pool, whoever dies meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.aggregator.uploaded import Uploaded
from tests.ray_cluster import ray_cluster

from fedddpm_aggregator.blobs import DirectoryBlobs
from fedddpm_aggregator.reduction_ray import RayReducer
from fedddpm_aggregator.stored_chunks import StoredChunks
from fedddpm_protocol import ring

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster(2) as running:
        yield running


@pytest.fixture(scope="module")
def reducer(cluster: Cluster) -> Iterator[RayReducer]:
    reducer = RayReducer(cluster.address)
    yield reducer
    reducer.close()


def opened(reducer: RayReducer, uploaded: Uploaded, chunks: StoredChunks) -> tuple[bytes, bytes, list[int]]:
    packed = bytearray(ring.packed_bytes(uploaded.segment.coordinates, uploaded.segment.bits))
    seen = []

    def write_at(offset: int, data: bytes) -> None:
        packed[offset : offset + len(data)] = data

    digest = reducer.open_segment(
        uploaded.masks,
        uploaded.segment,
        uploaded.chunk,
        chunks,
        write_at,
        lambda words: seen.append(int(words.sum(dtype=np.uint64))),
    )
    return bytes(packed), digest, seen


@pytest.mark.parametrize("bits", [6, 32])
def test_the_bytes_are_those_of_threads(
    reducer: RayReducer, bits: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uploaded = Uploaded(bits)  # with a member that dropped after its shares
    packed, digest, seen = opened(reducer, uploaded, uploaded.stored(DirectoryBlobs(tmp_path)))
    assert (packed, digest) == uploaded.open(2, lambda words: None)
    assert packed == ring.pack(uploaded.total, bits)
    assert len(seen) == 16
    assert sum(seen) == int(uploaded.total.sum(dtype=np.uint64))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
