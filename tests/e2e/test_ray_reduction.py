"""Sums opened on a Ray cluster of two workers: the bytes of the thread pool, whoever dies meanwhile."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.aggregator.support.driver import drive, take_seats
from tests.aggregator.support.federations import Federation, ServerProcess
from tests.aggregator.support.sites import Site
from tests.aggregator.support.uploaded import Uploaded
from tests.aggregator.support.watching import check_part, first_state
from tests.support.ray_cluster import frozen_workers, kill, kill_node, node_of, processes_called, ray_cluster

from fedddpm_aggregator.blobs.directory import DirectoryBlobs
from fedddpm_aggregator.reduction.ray_cluster import RayReducer
from fedddpm_aggregator.reduction.threads import DamagedUploadError
from fedddpm_aggregator.vectors.stored_chunks import chunk_blob
from fedddpm_protocol.primitives import ring

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

LONG, CHUNK = 2**18, 2**12  # words; two tasks whose results are too large to travel within messages
TASK = "open_stretch"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster(2) as running:
        yield running


@pytest.fixture(scope="module")
def reducer(cluster: Cluster) -> Iterator[RayReducer]:
    reducer = RayReducer(cluster.address)
    yield reducer
    reducer.close()


@pytest.fixture(scope="module")
def uploaded() -> Uploaded:
    """Four members' uploads of many chunks; the fifth dropped after its shares."""
    return Uploaded(12, LONG, CHUNK)


class Opening:
    """A segment that is being opened, with chunks that can be held back: whoever reads them waits for ever."""

    def __init__(self, uploaded: Uploaded, folder: Path) -> None:
        self.uploaded, self._folder = uploaded, folder
        self.chunks = uploaded.stored(DirectoryBlobs(folder))
        self.seen: list[int] = []
        self._packed = bytearray(ring.packed_bytes(uploaded.segment.coordinates, uploaded.segment.bits))

    def path(self, index: int) -> Path:
        member = sorted(self.uploaded.uploads)[0]
        return self._folder / chunk_blob(self.chunks.folder, member, "part", index)

    def hold_back(self, *indices: int) -> None:
        self._held = [self.path(index) for index in indices]
        for path in self._held:
            path.rename(path.with_suffix(".kept"))
            os.mkfifo(path)

    def let_go(self) -> None:
        """For readers who come from now on."""
        for path in self._held:
            path.with_suffix(".kept").replace(path)

    def run(self, reducer: RayReducer) -> tuple[bytes, bytes]:
        """Packed sum and its digest."""
        digest = reducer.open_segment(
            self.uploaded.masks, self.uploaded.segment, self.uploaded.chunk, self.chunks, self._write_at, self._look
        )
        return bytes(self._packed), digest

    def start(self, reducer: RayReducer) -> Future[tuple[bytes, bytes]]:
        pool = ThreadPoolExecutor(1)
        future = pool.submit(self.run, reducer)
        pool.shutdown(wait=False)
        return future

    def _write_at(self, offset: int, data: bytes) -> None:
        self._packed[offset : offset + len(data)] = data

    def _look(self, words: ring.Words) -> None:
        self.seen.append(int(words.sum(dtype=np.uint64)))

    def check(self, result: tuple[bytes, bytes]) -> None:
        """The members' sum, the digest of the thread pool, every chunk seen once and in order."""
        expected, total = self.uploaded.open(2, lambda words: None), self.uploaded.total
        assert result == expected
        assert result[0] == ring.pack(total, self.uploaded.segment.bits)
        starts = range(0, len(total), self.uploaded.chunk)
        assert self.seen == [int(total[s : s + self.uploaded.chunk].sum(dtype=np.uint64)) for s in starts]


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [str(record.__dict__["fields"]["reason"]) for record in caplog.records if "Ray failed" in record.message]


@pytest.mark.parametrize("bits", [6, 32])
def test_the_bytes_are_those_of_threads(
    reducer: RayReducer, bits: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opening = Opening(Uploaded(bits), tmp_path)
    opening.check(opening.run(reducer))
    assert not failures(caplog)


def test_seeds_of_masks_are_in_no_log_of_ray(
    cluster: Cluster, reducer: RayReducer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opening = Opening(Uploaded(8), tmp_path)
    opening.check(opening.run(reducer))
    assert not failures(caplog)
    folder = Path(cluster.head_node.get_logs_dir_path())
    logs = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert logs
    for seed, _ in opening.uploaded.masks.seeds:
        assert not any(
            form in logs for form in (seed, seed.hex().encode(), base64.b64encode(seed), repr(seed).encode())
        )


def test_workers_killed_in_the_middle_lose_nothing(
    reducer: RayReducer, uploaded: Uploaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opening = Opening(uploaded, tmp_path)
    opening.hold_back(3, 40)  # one chunk of each task
    result = opening.start(reducer)
    workers = frozen_workers(TASK, 2)
    opening.let_go()
    for process in workers:
        kill(process)
    opening.check(result.result(60))
    assert not failures(caplog)


def test_a_chunk_that_was_damaged_is_told(
    reducer: RayReducer, uploaded: Uploaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opening = Opening(uploaded, tmp_path)
    path = opening.path(40)
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedUploadError, match="damaged"):
        opening.run(reducer)
    assert failures(caplog)[0].startswith("DamagedUploadError")


def drivers() -> set[int]:
    """Process ids of those that talk to Ray."""
    return set(processes_called("fedddpm_aggregator.reduction.ray_driver"))


def test_the_process_that_talks_to_ray_dies_and_threads_go_on(
    cluster: Cluster, uploaded: Uploaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, opening, reducer = drivers(), Opening(uploaded, tmp_path), RayReducer(cluster.address)
    opening.hold_back(40)
    result = opening.start(reducer)
    deadline = time.monotonic() + 60
    while len(opening.seen) < LONG // CHUNK // 2:  # the first half came from Ray
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (worker,) = frozen_workers(TASK, 1)
    opening.let_go()
    (driver,) = drivers() - before
    kill(driver)
    opening.check(result.result(60))
    kill(worker)
    assert failures(caplog) == ["the process that talks to Ray ended, as it does when the cluster is gone"]
    reducer.close()


def test_a_server_that_leaves_does_not_wait_for_ray(cluster: Cluster, uploaded: Uploaded, tmp_path: Path) -> None:
    opening, reducer = Opening(uploaded, tmp_path), RayReducer(cluster.address)
    opening.hold_back(3, 40)
    result = opening.start(reducer)
    workers = frozen_workers(TASK, 2)
    opening.let_go()
    reducer.close()
    opening.check(result.result(60))
    for worker in workers:
        kill(worker)


def test_without_a_cluster_threads_open_the_sum(
    uploaded: Uploaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reducer = RayReducer("127.0.0.1:1", patience_s=0.5)
    opening = Opening(uploaded, tmp_path)
    opening.check(opening.run(reducer))
    reducer.close()
    assert failures(caplog) == ["nothing came for 0.5 seconds"]


def test_a_whole_round_through_a_server_on_ray(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDDDPM_AGGREGATOR_RAY", cluster.address)
    federation = Federation(tmp_path)
    federation.start_run(rounds=1)
    server = ServerProcess(federation)
    server.start()
    site = Site(federation, server.url)
    try:
        seats = take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder")
        drive(seats)
        check_part(site, 0, seats)
    finally:
        site.close()
        server.kill()
    log = (tmp_path / "server.log").read_text()
    assert "sums are opened on Ray" in log
    assert "Ray failed" not in log


def test_a_node_that_dies_takes_no_finished_chunks_with_it(
    cluster: Cluster, uploaded: Uploaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opening, reducer = Opening(uploaded, tmp_path), RayReducer(cluster.address)
    opening.hold_back(3)
    result = opening.start(reducer)
    (worker,) = frozen_workers(TASK, 1, for_s=1.0)  # the other task is done; nobody has asked for its chunks
    here = node_of(cluster, worker)
    kill_node(cluster, next(node for node in cluster.worker_nodes if node is not here))
    opening.let_go()
    kill(worker)
    opening.check(result.result(60))
    assert not failures(caplog)
    reducer.close()
