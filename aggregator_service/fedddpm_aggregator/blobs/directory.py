"""Blobs as files.

A blob becomes visible by its final name only after its bytes are durable: temporary file, fsync, hard link (which
fails if the name exists), fsync of the directory. So a reader never sees half a blob and two writers never mix.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fedddpm_aggregator.blobs.interface import (
    BLOCK_BYTES,
    LEFTOVER_AGE,
    TEMPORARY,
    BlobConflictError,
    full_disk_as_typed_error,
    require_name,
)


class DirectoryBlobs:
    """Write-once files below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """The directory as an absolute path."""
        return str(self.root.resolve())

    @property
    def reads_at_once(self) -> int:
        """One: a read is no round trip."""
        return 1

    def path(self, name: str) -> Path:
        """Where a blob lies; ValueError for a name that would leave the directory."""
        return self.root / require_name(name)

    def put(self, name: str, data: bytes) -> None:
        """Store ``data`` durably under ``name``; the same bytes again are fine.

        Raises BlobConflictError when other bytes are there, StorageFullError when the disk is full.
        """
        path = self.path(name)
        if path.exists():
            self._require_same(path, data)
            return
        try:
            with self._create(name) as file:
                file.write(data)
        except BlobConflictError:
            self._require_same(path, data)

    @contextlib.contextmanager
    def create_or_keep(self, name: str) -> Iterator[BinaryIO]:
        """A file to write; it appears under ``name``, durable, when the block ends without an error.

        A blob that exists by then is kept.
        """
        with contextlib.suppress(BlobConflictError), self._create(name) as file:
            yield file

    @contextlib.contextmanager
    def _create(self, name: str) -> Iterator[BinaryIO]:
        """As :meth:`create_or_keep`, but BlobConflictError for a blob that exists by then."""
        path = self.path(name)
        with full_disk_as_typed_error():
            _make_directories(self.root, path.parent)
            temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
            try:
                with temporary.open("xb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    raise BlobConflictError(f"blob {name} exists") from None
            finally:
                temporary.unlink(missing_ok=True)
            _sync_directory(path.parent)

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """The bytes of a blob from ``start`` on, at most ``size`` of them; FileNotFoundError if there is none."""
        with self.path(name).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def size(self, name: str) -> int:
        """Bytes of a blob; FileNotFoundError if there is none."""
        return self.path(name).stat().st_size

    def exists(self, name: str) -> bool:
        """Whether the blob is there, whole."""
        return self.path(name).exists()

    def stream(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes [start, end) of a blob, block by block; FileNotFoundError at once if there is none."""
        return _blocks(self.path(name).open("rb"), start, end)

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """The blob's own file; FileNotFoundError."""
        path = self.path(name)
        path.stat()
        yield path

    def remove(self, name: str) -> None:
        """Delete a blob; one that is not there is fine."""
        self.path(name).unlink(missing_ok=True)

    def remove_tree(self, name: str) -> None:
        """Delete every blob below ``name``; OSError if one cannot be deleted."""
        path = self.path(name)
        if path.exists():
            shutil.rmtree(path, onerror=_unless_gone)

    def folders(self, name: str) -> list[str]:
        """Names of the folders directly below ``name``; those of the whole store for an empty name."""
        path = self.path(name) if name else self.root
        return sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.exists() else []

    def changed_at(self, name: str) -> float | None:
        """Unix seconds of the newest change below the folder ``name``; None if there is none."""
        path, newest = self.path(name), None
        with contextlib.suppress(FileNotFoundError):
            newest = path.stat().st_mtime
            for entry in path.rglob("*"):
                with contextlib.suppress(FileNotFoundError):
                    newest = max(newest, entry.stat().st_mtime)
        return newest

    def remove_leftovers(self, *, alone: bool = False) -> None:
        """Delete temporary files that are older than any write takes, or all of them while nobody else writes."""
        newest = math.inf if alone else time.time() - LEFTOVER_AGE.total_seconds()
        for leftover in self.root.rglob(f"{TEMPORARY}*"):
            with contextlib.suppress(FileNotFoundError):
                if leftover.stat().st_mtime < newest:
                    leftover.unlink()

    def check_writable(self) -> None:
        """Raise OSError or StorageFullError unless a small file can be made durable here."""
        with full_disk_as_typed_error():
            probe = self.root / f"{TEMPORARY}probe-{secrets.token_hex(8)}"
            try:
                probe.write_bytes(b"probe")
            finally:
                probe.unlink(missing_ok=True)

    @staticmethod
    def _require_same(path: Path, data: bytes) -> None:
        stored = hashlib.sha256(path.read_bytes()).digest()
        if stored != hashlib.sha256(data).digest():
            raise BlobConflictError(f"blob {path.name} exists with other content")


def _blocks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < end and (block := file.read(min(BLOCK_BYTES, end - start))):
            yield block
            start += len(block)


def _unless_gone(_function: object, _path: str, failure: tuple[object, BaseException, object]) -> None:
    if not isinstance(failure[1], FileNotFoundError):  # another replica may delete the same folder
        raise failure[1]


def _make_directories(root: Path, directory: Path) -> None:
    if directory.is_dir():
        return
    _make_directories(root, directory.parent)
    directory.mkdir(exist_ok=True)
    _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
