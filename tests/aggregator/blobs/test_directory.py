"""What only blobs on a disk can meet: full and broken disks, leftovers of killed writers."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from fedddpm_aggregator.blobs.directory import DirectoryBlobs
from fedddpm_aggregator.blobs.interface import LEFTOVER_AGE, StorageFullError


@pytest.fixture
def blobs(tmp_path: Path) -> DirectoryBlobs:
    return DirectoryBlobs(tmp_path / "blobs")


def files(blobs: DirectoryBlobs) -> list[str]:
    return sorted(path.name for path in blobs.root.rglob("*") if path.is_file())


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
    blobs.remove_leftovers(alone=True)
    assert files(blobs) == ["0"]


def test_leftovers_are_old_where_other_replicas_may_be_writing(blobs: DirectoryBlobs) -> None:
    replica = DirectoryBlobs(blobs.root)
    old = blobs.root / ".writing-dead"
    old.write_bytes(b"half")
    os.utime(old, (time.time() - LEFTOVER_AGE.total_seconds() - 60,) * 2)
    with blobs.create_or_keep("a/0") as file:
        file.write(b"half")
        replica.remove_leftovers()
        file.write(b" and the rest")
    assert files(blobs) == ["0"]
    assert replica.read("a/0") == b"half and the rest"
