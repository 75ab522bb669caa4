"""Write-once blobs: durable or not there, never half, never changed."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from fedddpm_aggregator.blobs import BlobConflictError, DirectoryBlobs, StorageFullError


@pytest.fixture
def blobs(tmp_path: Path) -> DirectoryBlobs:
    return DirectoryBlobs(tmp_path / "blobs")


def files(blobs: DirectoryBlobs) -> list[str]:
    return sorted(path.name for path in blobs.root.rglob("*") if path.is_file())


def test_a_blob_is_kept_as_it_was_first_written(blobs: DirectoryBlobs) -> None:
    blobs.put("a/b/0", b"first")
    blobs.put("a/b/0", b"first")
    with pytest.raises(BlobConflictError):
        blobs.put("a/b/0", b"other")
    assert blobs.read("a/b/0") == b"first"
    assert files(blobs) == ["0"]


def test_nothing_is_visible_before_it_is_whole(blobs: DirectoryBlobs) -> None:
    with pytest.raises(RuntimeError), blobs.create("x") as file:  # noqa: PT012
        file.write(b"half")
        assert not blobs.exists("x")
        raise RuntimeError
    assert not blobs.exists("x")
    assert files(blobs) == []


def test_of_two_writers_one_wins(blobs: DirectoryBlobs) -> None:
    gate, outcomes = threading.Barrier(8), []

    def write(index: int) -> None:
        gate.wait()
        try:
            blobs.put("race", b"%d" % index * 1000)
            outcomes.append(index)
        except BlobConflictError:
            pass

    threads = [threading.Thread(target=write, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [blobs.read("race")] == [b"%d" % index * 1000 for index in outcomes]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a//b", "", ".hidden", "a/./b"])
def test_names_stay_inside(blobs: DirectoryBlobs, name: str) -> None:
    with pytest.raises(ValueError, match="no blob name"):
        blobs.put(name, b"x")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_behind(blobs: DirectoryBlobs, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(code, "full")

    monkeypatch.setattr(os, "fsync", full)
    (blobs.root / "a").mkdir()
    with pytest.raises(StorageFullError, match="Free space"):
        blobs.put("a/0", b"data")
    monkeypatch.undo()
    assert files(blobs) == []
    blobs.put("a/0", b"data")
    assert blobs.read("a/0") == b"data"


def test_other_errors_stay_what_they_are(blobs: DirectoryBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="broken disk"):
        blobs.put("0", b"data")


def test_leftovers_of_a_killed_writer_are_removed(blobs: DirectoryBlobs) -> None:
    blobs.put("a/0", b"data")
    (blobs.root / "a" / ".writing-dead").write_bytes(b"half")
    blobs.remove_leftovers()
    assert files(blobs) == ["0"]
