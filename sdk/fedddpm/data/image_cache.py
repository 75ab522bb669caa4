"""Decoded images on disk, so that a folder is decoded once and not at every start.

One safetensors file a source, whole or not there at all, readable by its owner only. It holds for exactly the files it
was made of: names, sizes and times of change. A file that is missing, damaged or out of date is made anew, and a folder
that cannot be written costs nothing but the time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from fedddpm.data.image_set import ImageSet
from fedddpm.errors import CheckpointError, DataError
from fedddpm.files.atomic import load_tensors
from fedddpm_protocol.untrusted.json_reading import read_json

_LOG = logging.getLogger(__name__)
_FORMAT = "fedddpm/images/2"  # changes when files are decoded in another way, or more is kept of them
_WORTH_IT = 8 << 20  # bytes of files; fewer are decoded in about a second


def usual_folder() -> Path:
    """``fedddpm/images`` in the user's cache folder, by the XDG base directory specification.

    A user without a home, as a container may have, is in ``/``, where nothing can be written.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        home = Path.home()
    except RuntimeError:
        home = Path("/")
    return (named if named.is_absolute() else home / ".cache") / "fedddpm" / "images"


def cached(
    where: Path | bool, source: Sequence[str], files: Sequence[Path], decode: Callable[[], ImageSet]
) -> ImageSet:
    """What ``decode`` makes of ``files``, from the cache where it is there.

    ``where`` is a folder; True is the usual one, for sets that are worth it; False is none. ``source`` names
    everything but the files that decides the images, for instance their size; each source has one file in the cache.
    """
    if where is False:
        return decode()
    stamps = [_stamp(path) for path in files]
    if where is True and sum(size for size, _ in stamps) < _WORTH_IT:
        return decode()
    key = _digest([_FORMAT, *source, *(f"{p}|{size}|{at}" for p, (size, at) in zip(files, stamps, strict=True))])
    path = (usual_folder() if where is True else Path(where)) / f"{_digest(source)[:24]}.safetensors"
    found = _read(path, key)
    if found is not None:
        return found
    with _alone(path) as writable:
        found = _read(path, key) if writable else None  # another process may have made it meanwhile
        if found is not None:
            return found
        images = decode()
        if writable:
            _write(path, key, images)
    return images


def _stamp(path: Path) -> tuple[int, int]:
    """(bytes, nanoseconds of the last change); zeros for a file that is not there, which decoding will list."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()


def _read(path: Path, key: str) -> ImageSet | None:
    if not os.access(path, os.R_OK):
        return None
    try:
        tensors, metadata = load_tensors(path)
        if metadata["key"] != key:
            return None
        skipped = tuple(map(str, read_json(metadata["skipped"])))
        images = ImageSet(tensors["images"], tensors.get("labels"), skipped, metadata["scaling"])
        if metadata["crc32"] != _checksum(images):
            raise ValueError("its checksum is wrong")
    except (CheckpointError, DataError, KeyError, TypeError, ValueError) as error:
        _LOG.warning(f"the decoded images in {path} are damaged ({error}); they are decoded anew")
        return None
    return images


def _checksum(images: ImageSet) -> str:
    labels = b"" if images.labels is None else images.labels.numpy().tobytes()
    return str(zlib.crc32(labels, zlib.crc32(images.images.numpy().data)))


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Wait until no other process makes this file; False where the folder cannot be written, or knows no locks."""
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = stack.enter_context(path.with_suffix(".lock").open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # closing the file gives it up
            writable = True
        except OSError as error:
            _LOG.warning(
                f"decoded images cannot be kept in {path.parent} ({error.strerror}), so every start decodes them;"
                " give a folder as cache"
            )
            writable = False
        yield writable


def _write(path: Path, key: str, images: ImageSet) -> None:
    """Straight to the disk: a large set is not copied in memory once more."""
    temporary = path.with_suffix(".partial")  # a fixed name: what a killed process left is overwritten
    tensors = {"images": images.images} | ({} if images.labels is None else {"labels": images.labels})
    skipped = json.dumps(list(images.skipped))
    metadata = {"key": key, "skipped": skipped, "scaling": images.scaling, "crc32": _checksum(images)}
    try:
        try:
            temporary.unlink(missing_ok=True)
            temporary.touch(mode=0o600)
            safetensors.torch.save_file(tensors, temporary, metadata)
            temporary.chmod(0o600)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, SafetensorError):
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except (OSError, SafetensorError) as error:
        _LOG.warning(f"the decoded images could not be kept in {path.parent} ({error}); the next start decodes them")
