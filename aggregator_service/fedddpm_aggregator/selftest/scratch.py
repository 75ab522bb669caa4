"""Storage of a selftest's own in the database and the blob store of an installation, gone when it ends."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedddpm_aggregator.blobs.interface import BlobSettingsError, BlobsUnavailableError
from fedddpm_aggregator.blobs.store_choice import open_blobs
from fedddpm_aggregator.errors import SelftestError
from fedddpm_aggregator.selftest.leftovers import PREFIX, Warn, remove_old_folders, removed_in_the_end
from fedddpm_aggregator.selftest.scratch_schema import own_schema


@dataclass(frozen=True)
class Storage:
    """Where a selftest keeps its data."""

    database_url: str
    blobs_url: str
    words: str


@contextlib.contextmanager
def own_storage(database_url: str | None, blobs_url: str | None, folder: Path, warn: Warn) -> Iterator[Storage]:
    """A schema in a PostgreSQL and a folder in a blob store, or files in ``folder``; both are empty, then gone.

    What a killed selftest left in the same PostgreSQL and blob store goes too; ``warn`` hears of what could not be
    removed. SelftestError.
    """
    name = PREFIX + secrets.token_hex(8)
    with contextlib.ExitStack() as stack:
        blobs = f"{folder}/blobs"
        if blobs_url is not None:
            remove_old_folders(blobs_url, warn)
            blobs = stack.enter_context(_own_blobs(blobs_url, name))
        if database_url is None or database_url.startswith("sqlite"):
            yield Storage(f"sqlite:///{folder.resolve()}/selftest.sqlite", blobs, f"SQLite; blobs in {blobs}")
            return
        url = stack.enter_context(own_schema(database_url, name, _remover(blobs_url), warn))
        yield Storage(url, blobs, f"schema {name}; blobs in {blobs}")


@contextlib.contextmanager
def _own_blobs(url: str, name: str) -> Iterator[str]:
    def remove() -> None:
        try:
            _remover(url)(name)
        except (OSError, BlobsUnavailableError, BlobSettingsError) as error:
            raise SelftestError(f"{url}: {name} is left behind there: {error}") from error

    with removed_in_the_end(remove):
        yield f"{url.rstrip('/')}/{name}"


def _remover(url: str | None) -> Callable[[str], None]:
    if url is None:
        return lambda _name: None
    return open_blobs(url).remove_tree
