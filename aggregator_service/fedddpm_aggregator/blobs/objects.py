"""Blobs as objects of an S3-compatible store.

A blob that fits into one request is created on the condition that its name is free (If-None-Match: *), which the store
decides. A larger one is first uploaded in pieces under a temporary name and then copied, inside the store, on the same
condition. So a reader never sees half a blob and two writers never mix, whichever machines they run on.

The condition of one request is what a store must keep, however many come at once; of the copy's last step not every
store does (SeaweedFS 4.48 lets two that end together both pass). So only a name that decides the bytes is written by a
copy, and whoever must know who was first uses :meth:`ObjectBlobs.put`, which is one request for any size.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import obstore

from fedddpm_aggregator.blobs.interface import (
    BLOCK_BYTES,
    LEFTOVER_AGE,
    TEMPORARY,
    BlobConflictError,
    BlobSettingsError,
    BlobsUnavailableError,
    full_disk_as_typed_error,
    require_name,
)
from fedddpm_aggregator.blobs.s3 import BeyondTheEndError, errors_of, open_store

if TYPE_CHECKING:
    from obstore import GetOptions  # only in its type information

ONE_REQUEST_BYTES = 8 * 2**20
_READS_AT_ONCE = 8
_TRIES = 3  # a name that was taken and is gone: its writer failed, or somebody deletes it


class ObjectBlobs:
    """Write-once objects below a prefix of one bucket: ``s3://bucket/prefix``."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._store = open_store(self._url)
        self._keeps = False  # until the store has shown that it heeds the condition of a write

    def __repr__(self) -> str:
        return f"ObjectBlobs({self._url!r})"

    @property
    def url(self) -> str:
        """Bucket and prefix; no credentials."""
        return self._url

    @property
    def reads_at_once(self) -> int:
        """Several: each is a round trip."""
        return _READS_AT_ONCE

    def put(self, name: str, data: bytes) -> None:
        """Store ``data`` under ``name``; the same bytes again are fine, others raise BlobConflictError."""
        require_name(name)
        for _ in range(_TRIES):
            if self._created(name, data):
                return
            with contextlib.suppress(FileNotFoundError):
                if hashlib.sha256(self.read(name)).digest() != hashlib.sha256(data).digest():
                    raise BlobConflictError(f"blob {name} exists with other content")
                return
        raise BlobsUnavailableError(f"{self._url}: {name} comes and goes; try again later")

    @contextlib.contextmanager
    def create_or_keep(self, name: str) -> Iterator[BinaryIO]:
        """A temporary local file to write; it is uploaded as ``name`` when the block ends without an error.

        A blob that exists by then is kept.
        """
        require_name(name)
        with full_disk_as_typed_error(), tempfile.TemporaryFile(prefix=TEMPORARY) as file:
            yield file
            file.flush()
            self._upload(name, file)

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """The bytes of a blob from ``start`` on, at most ``size`` of them; FileNotFoundError if there is none."""
        if start == 0 and size is None:
            with errors_of(self._url):
                return bytes(obstore.get(self._store, require_name(name)).bytes())
        try:
            with errors_of(self._url):
                found = obstore.get(self._store, require_name(name), options=_range(start, size)).bytes()
        except BeyondTheEndError:
            return b""
        return bytes(found)[:size]

    def size(self, name: str) -> int:
        """Bytes of a blob; FileNotFoundError if there is none."""
        with errors_of(self._url):
            return int(obstore.head(self._store, require_name(name))["size"])

    def exists(self, name: str) -> bool:
        """Whether the blob is there, whole."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def stream(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes [start, end) of a blob, block by block; FileNotFoundError at once if there is none."""
        if start >= end:
            self.size(name)
            return iter(())
        with errors_of(self._url):
            found = obstore.get(self._store, require_name(name), options={"range": (start, end)})
            return self._blocks(iter(found.stream(min_chunk_size=BLOCK_BYTES)))

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A temporary file with the blob's bytes; FileNotFoundError."""
        with errors_of(self._url):
            found = obstore.get(self._store, require_name(name))
        with tempfile.NamedTemporaryFile(prefix=TEMPORARY) as file:
            with full_disk_as_typed_error():
                for block in self._blocks(iter(found.stream(min_chunk_size=BLOCK_BYTES))):
                    file.write(block)
                file.flush()
            yield Path(file.name)

    def remove(self, name: str) -> None:
        """Delete a blob; one that is not there is fine."""
        self._delete([require_name(name)])

    def remove_tree(self, name: str) -> None:
        """Delete every blob below ``name``."""
        with errors_of(self._url):
            for found in obstore.list(self._store, require_name(name), chunk_size=1000):
                self._delete([entry["path"] for entry in found])

    def folders(self, name: str) -> list[str]:
        """Names of the folders directly below ``name``; those of the whole store for an empty name."""
        with errors_of(self._url):
            found = obstore.list_with_delimiter(self._store, require_name(name) if name else None)["common_prefixes"]
        return sorted(path.rsplit("/", 1)[-1] for path in found)

    def changed_at(self, name: str) -> float | None:
        """Unix seconds of the newest change below the folder ``name``; None if there is none."""
        with errors_of(self._url):
            found = obstore.list(self._store, require_name(name), chunk_size=1000)
            times = [entry["last_modified"].timestamp() for page in found for entry in page]
        return max(times, default=None)

    def remove_leftovers(self, *, alone: bool = False) -> None:
        """Delete temporary objects that are older than any upload takes: their writers were killed."""
        too_old = datetime.now(UTC) - LEFTOVER_AGE
        with errors_of(self._url):
            for found in obstore.list(self._store, TEMPORARY, chunk_size=1000):
                self._delete([entry["path"] for entry in found if entry["last_modified"] < too_old])

    def check_writable(self) -> None:
        """Store and delete a small object; raises what every method raises.

        BlobSettingsError where the store ignores the condition of a write: then nothing is written once.
        """
        probe = _temporary_name()
        self._created(probe, b"probe")
        kept = self._keeps or not self._created(probe, b"another")
        self._delete([probe])
        if not kept:
            raise BlobSettingsError(
                f"{self._url}: the object store writes over what is there although it is asked not to "
                "(If-None-Match: *); use one that has conditional writes"
            )
        self._keeps = True

    def _created(self, name: str, data: bytes) -> bool:
        """Whether ``name`` was free and holds ``data`` now."""
        try:
            with errors_of(self._url):
                obstore.put(self._store, name, data, mode="create")
        except BlobConflictError:
            return False
        return True

    def _upload(self, name: str, file: BinaryIO) -> None:
        """Store a file of any size unless ``name`` is taken; memory holds a few pieces of it."""
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= ONE_REQUEST_BYTES:
            self._created(name, file.read())
            return
        temporary = _temporary_name()
        try:
            with contextlib.suppress(BlobConflictError), errors_of(self._url):
                obstore.put(self._store, temporary, file, max_concurrency=2)
                obstore.copy(self._store, temporary, name, overwrite=False)
        finally:
            with contextlib.suppress(BlobsUnavailableError):  # it is a leftover then, and removed as one
                self._delete([temporary])

    def _delete(self, names: list[str]) -> None:
        if names:
            with errors_of(self._url):
                obstore.delete(self._store, names)

    def _blocks(self, stream: Iterator[bytes]) -> Iterator[bytes]:
        while True:
            with errors_of(self._url):
                block = next(stream, None)
            if block is None:
                return
            yield bytes(block)


def _range(start: int, size: int | None) -> GetOptions:
    return {"range": {"offset": start} if size is None else (start, start + max(size, 1))}


def _temporary_name() -> str:
    return f"{TEMPORARY}/{secrets.token_hex(8)}"
