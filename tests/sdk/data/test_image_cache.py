"""Decoded images on disk: used when they are right, made anew when they are not, never in the way."""

import logging
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedddpm.data.image_cache import cached, usual_folder
from fedddpm.data.opening import ImageSet, open_images


def fill(path: Path, value: int, side: int = 16) -> None:
    """One grey BMP: every value has the same size in bytes."""
    Image.fromarray(np.full((side, side), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "images"
    place.mkdir()
    for i in range(12):
        fill(place / f"{i:02}.bmp", 10 * i)
    (place / "03-bad.bmp").write_bytes(b"no image")
    return place


@pytest.fixture
def swapped(folder: Path) -> Path:
    """A file of ``folder``; :func:`swap` gives it other pixels behind an unchanged name, size and time."""
    return folder / "05.bmp"


def swap(path: Path, value: int) -> None:
    stat = path.stat()
    fill(path, value)
    assert path.stat().st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def values(images: ImageSet) -> list[int]:
    return [int(value) for value in images.images[:, 0, 0, 0]]


def test_the_second_time_nothing_is_decoded(folder: Path, swapped: Path, tmp_path: Path) -> None:
    first = open_images(folder, cache=tmp_path / "cache")
    swap(swapped, 99)
    again = open_images(folder, cache=tmp_path / "cache")
    assert torch.equal(again.images, first.images)
    assert list(again.skipped) == list(first.skipped) == ["03-bad.bmp: not an image"]
    assert 99 in values(open_images(folder, cache=False))
    (entry,) = (tmp_path / "cache").glob("*.safetensors")
    assert entry.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_other_files_or_other_wishes_are_decoded(folder: Path, swapped: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    open_images(folder, cache=cache)
    fill(swapped, 99)  # a new time
    os.utime(swapped, ns=(1, 1))
    assert 99 in values(open_images(folder, cache=cache))
    fill(folder / "12.bmp", 77)
    assert 77 in values(open_images(folder, cache=cache))
    assert open_images(folder, cache=cache, image_size=8).image_size == 8
    assert open_images(folder, cache=cache, channels=3).channels == 3
    assert len(open_images(folder, cache=cache, limit=3)) == 3
    assert len(open_images(folder, cache=cache)) == 13
    (folder / "12.bmp").unlink()
    assert 77 not in values(open_images(folder, cache=cache))
    assert len(list(cache.glob("*.safetensors"))) == 4  # one a wish, not one a change


def test_pictures_of_another_rule_are_decoded_anew(
    folder: Path, swapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:  # 16 bits without a look at their range, and nothing kept about it
        older.setattr("fedddpm.data.image_cache._FORMAT", "fedddpm/images/1")
        open_images(folder, cache=tmp_path / "cache")
    swap(swapped, 99)
    assert 99 in values(open_images(folder, cache=tmp_path / "cache"))


def test_how_greys_were_mapped_comes_back_too(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for i in range(2):
        pixels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
        Image.fromarray(pixels).save(tmp_path / "deep" / f"{i}.png")
    first = open_images(tmp_path / "deep", cache=tmp_path / "cache")
    for path in (tmp_path / "deep").iterdir():
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))  # nothing could be decoded any more
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = open_images(tmp_path / "deep", cache=tmp_path / "cache")
    assert again.scaling == first.scaling == "16-bit files (2), 0 to 65535 by their depth mapped to 0..255"
    assert torch.equal(again.images, first.images)


def test_labels_come_back_too(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        fill(tmp_path / "pets" / name / "a.bmp", len(name))
    for _ in range(2):
        data = open_images(tmp_path / "pets", labels="folders", cache=tmp_path / "cache")
        assert data.labels is not None
        assert data.labels.tolist() == [0, 1]
    assert open_images(tmp_path / "pets", cache=tmp_path / "cache").labels is None
    other = open_images(tmp_path / "pets", labels=["dog", "cat"], cache=tmp_path / "cache")
    assert other.labels is not None
    assert other.labels.tolist() == [1, 0]


@pytest.mark.parametrize("damage", ["cut off", "no such file format", "one pixel", "no checksum"])
def test_a_damaged_cache_is_made_anew(
    folder: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_images(folder, cache=tmp_path / "cache")
    (entry,) = (tmp_path / "cache").glob("*.safetensors")
    raw = bytearray(entry.read_bytes())
    if damage == "one pixel":
        raw[-1] ^= 1
    changed = {"cut off": raw[:-9], "no such file format": b"x" * 40, "one pixel": raw}.get(damage)
    entry.write_bytes(raw.replace(b"crc32", b"crc99") if changed is None else changed)
    with caplog.at_level(logging.WARNING, "fedddpm"):
        again = open_images(folder, cache=tmp_path / "cache")
    assert torch.equal(again.images, first.images)
    assert "are damaged" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fedddpm"):
        open_images(folder, cache=tmp_path / "cache")
    assert caplog.text == ""


@pytest.fixture
def full_disk(folder: Path) -> Iterator[Path]:
    """No file may grow beyond some bytes: writes fail as they do on a full disk. Gives ``folder``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_the_cache_and_not_the_run(
    full_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fedddpm"):
        assert len(open_images(full_disk, cache=tmp_path / "cache")) == 12
    assert "could not be kept" in caplog.text
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made_costs_the_cache_and_not_the_run(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, "fedddpm"):
        assert len(open_images(folder, cache=tmp_path / "file" / "cache")) == 12
    assert "cannot be kept" in caplog.text


def test_what_a_killed_process_left_is_overwritten(folder: Path, tmp_path: Path) -> None:
    open_images(folder, cache=tmp_path / "cache")
    (entry,) = (tmp_path / "cache").glob("*.safetensors")
    entry.rename(entry.with_suffix(".partial"))
    entry.with_suffix(".partial").write_bytes(b"half of it")
    open_images(folder, cache=tmp_path / "cache")
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".lock", ".safetensors"]


def test_several_at_once_decode_once(folder: Path, tmp_path: Path) -> None:
    files, decoded, got = sorted(folder.iterdir()), [], []

    def decode() -> ImageSet:
        decoded.append(1)
        return ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))

    def start() -> None:
        got.append(cached(tmp_path / "cache", ["x"], files, decode))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 1
    assert [len(images) for images in got] == [2] * 4


def test_by_itself_only_what_is_worth_it_is_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    open_images(folder)
    assert not (tmp_path / "xdg").exists()
    for i in range(3):
        fill(folder / f"large-{i}.bmp", i, side=1700)  # 2.9 MB each
    for _ in range(2):
        assert len(open_images(folder, image_size=8)) == 15
    assert len(list((tmp_path / "xdg" / "fedddpm" / "images").glob("*.safetensors"))) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert usual_folder() == Path.home() / ".cache" / "fedddpm" / "images"
