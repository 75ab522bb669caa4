"""What a selftest removes: its own things in the end, and those of an earlier one that was killed."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator

from fedddpm_aggregator.blobs.interface import BlobSettingsError, BlobsUnavailableError
from fedddpm_aggregator.blobs.store_choice import open_blobs
from fedddpm_aggregator.errors import SelftestError

PREFIX = "fedddpm_selftest_"
OLD_S = 3600.0  # a selftest takes minutes at the most
Warn = Callable[[str], None]
_NAME = re.compile(PREFIX + "[0-9a-f]{16}")


def is_ours(name: str) -> bool:
    """Whether a selftest made the schema or folder of this name: nothing else is ever touched."""
    return _NAME.fullmatch(name) is not None


def remove_old_folders(blobs_url: str, warn: Warn) -> None:
    """Delete folders of selftests in which nothing was written for an hour; ``warn`` hears of what stays."""
    blobs = open_blobs(blobs_url)
    for name in filter(is_ours, blobs.folders("")):
        try:
            changed_at = blobs.changed_at(name)
            if changed_at is not None and changed_at < time.time() - OLD_S:
                blobs.remove_tree(name)
        except (OSError, BlobsUnavailableError, BlobSettingsError) as error:
            warn(f"the folder {name} of an earlier selftest stays in {blobs_url}: {error}")


@contextlib.contextmanager
def removed_in_the_end(remove: Callable[[], None]) -> Iterator[None]:
    """Call ``remove`` whatever happens; what went wrong before is told rather than what goes wrong there."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(SelftestError):
            remove()
        raise
    remove()
