"""What a store of blobs does, wherever it keeps them."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Protocol

TEMPORARY = ".writing-"  # begins the names of files and objects that are being written; no blob has such a name
BLOCK_BYTES = 2**20  # streams come in blocks of about this size
LEFTOVER_AGE = timedelta(days=1)  # no write takes so long; replicas elsewhere may be writing now


class StorageFullError(Exception):
    """There is no room left for another blob."""

    def __init__(self) -> None:
        super().__init__("the aggregator's storage is full; nothing was stored. Free space where its blobs are kept")


class BlobConflictError(Exception):
    """A blob of this name exists with other content."""


class BlobsUnavailableError(Exception):
    """The object store does not answer, or not as it should; the same call may work later."""


class BlobSettingsError(Exception):
    """The object store cannot be used as it is set up: no such bucket, or refused credentials."""


class Blobs(Protocol):
    """Blobs by name, each written once; names are relative paths of safe components.

    A blob is visible by its name only when it is whole and durable, and is one writer's, never a mixture. Of several
    writers of one name with different bytes :meth:`put` lets exactly one succeed; :meth:`create_or_keep` is for names
    that decide the bytes, so that it does not matter whose stay.
    Every method raises ValueError for a name that is none and, where blobs are in an object store,
    BlobsUnavailableError or BlobSettingsError.
    """

    @property
    def url(self) -> str:
        """What ``store_choice.open_blobs`` takes to open the same store in another process."""

    @property
    def reads_at_once(self) -> int:
        """How many blobs are best read at the same time by one who needs many; 1: one after the other."""

    def put(self, name: str, data: bytes) -> None:
        """Store ``data`` durably under ``name``; the same bytes again are fine.

        Raises BlobConflictError when other bytes are there, StorageFullError when there is no room.
        """

    def create_or_keep(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A local file with a ``fileno()`` to write; it appears under ``name`` when the block ends without an error.

        A blob that exists by then is kept. Of writers that end at the same moment the store may take one after the
        other: none is told whose bytes stay.
        """

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """The bytes of a blob from ``start`` on, at most ``size`` of them; FileNotFoundError if there is none."""

    def size(self, name: str) -> int:
        """Bytes of a blob; FileNotFoundError if there is none."""

    def exists(self, name: str) -> bool:
        """Whether the blob is there, whole."""

    def stream(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes [start, end) of a blob, block by block; FileNotFoundError at once if there is none."""

    def local(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A file with the blob's bytes, for libraries that want a path; FileNotFoundError. Never write to it."""

    def remove(self, name: str) -> None:
        """Delete a blob; one that is not there is fine."""

    def remove_tree(self, name: str) -> None:
        """Delete every blob below ``name``."""

    def folders(self, name: str) -> list[str]:
        """Names of the folders directly below ``name``, sorted; those of the whole store for an empty name."""

    def changed_at(self, name: str) -> float | None:
        """Unix seconds of the newest change below the folder ``name``; None if there is none."""

    def remove_leftovers(self, *, alone: bool = False) -> None:
        """Delete what killed writers left, as far as it is older than any write takes.

        ``alone``: nobody else writes here, on no machine. Then a directory gives up all of it.
        """

    def check_writable(self) -> None:
        """Raise OSError, StorageFullError or what every method raises unless a small blob can be stored here."""


def require_name(name: str) -> str:
    """``name`` itself; ValueError for one that would leave the store or hide in it."""
    if any(part in ("", ".", "..") or part.startswith(".") for part in name.split("/")):
        raise ValueError(f"{name!r} is no blob name")
    return name


@contextlib.contextmanager
def full_disk_as_typed_error() -> Iterator[None]:
    """Turn the system's errors of a full disk into StorageFullError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError from error
        raise
