"""Files that are there whole or not at all."""

import errno
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedddpm.errors import CheckpointError
from fedddpm.files.atomic import load_tensors, save_tensors, write_atomic


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_the_mode_holds_even_over_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".key.partial").write_bytes(b"left behind, readable by all")
    write_atomic(tmp_path / "key", b"secret", mode=0o600)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert (tmp_path / "key").read_bytes() == b"secret"


def raising(error: int, after: int) -> Callable[[int, bytes], int]:
    """An os.write of a disk that holds ``after`` more bytes and then fails."""
    room, real = after, os.write

    def write(descriptor: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(error, os.strerror(error))
        written = real(descriptor, bytes(data)[:room])
        room -= written
        return written

    return write


@pytest.mark.parametrize(
    ("error", "advice"), [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "quota"), (errno.EIO, "disk")]
)
def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, advice: str
) -> None:
    path = tmp_path / "round.safetensors"
    save_tensors(path, {"x": torch.arange(3.0)}, {"step": "1"})
    monkeypatch.setattr(os, "write", raising(error, after=100))
    with pytest.raises(CheckpointError, match=advice) as caught:
        save_tensors(path, {"x": torch.ones(1000)}, {"step": "2"})
    assert str(path) in str(caught.value)
    monkeypatch.undo()
    tensors, metadata = load_tensors(path)
    assert (tensors["x"].tolist(), metadata) == ([0.0, 1.0, 2.0], {"step": "1"})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_system_that_refuses_more_is_told_too(tmp_path: Path) -> None:
    path, (soft, hard) = tmp_path / "f", resource.getrlimit(resource.RLIMIT_FSIZE)
    write_atomic(path, b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the kernel itself now refuses larger files
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            write_atomic(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:7]))
    write_atomic(tmp_path / "f", bytes(range(100)))
    assert (tmp_path / "f").read_bytes() == bytes(range(100))


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"old")

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    write_atomic(path, b"newer")
    assert path.read_bytes() == b"newer"


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="create it first"):
        write_atomic(tmp_path / "absent" / "f", b"")


def test_tensors_and_metadata_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    tensors = {
        "weights": torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last),
        "step": torch.tensor(7, dtype=torch.int64),
        "loss": torch.tensor(0.1, dtype=torch.float64),
    }
    save_tensors(path, tensors, {"a": "ä", "b": ""})
    again, metadata = load_tensors(path)
    assert metadata == {"a": "ä", "b": ""}
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) and again[name].dtype == tensors[name].dtype for name in tensors)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"x": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        load_tensors(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tensors(tmp_path)
