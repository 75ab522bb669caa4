"""Results that cost minutes, kept on disk: safetensors under a name that follows from what they were made of.

A file that is missing, damaged or made of something else is made anew. A lock beside each file lets several processes
share a folder: the second one waits and reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from fedddpm.errors import CheckpointError
from fedddpm.files.atomic import load_tensors, save_tensors

_LOG = logging.getLogger(__name__)


def default_cache() -> Path:
    """``fedddpm`` below the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedddpm"


def cache_file(folder: Path, kind: str, origin: Mapping[str, str]) -> Path:
    """The file below ``folder`` for what was made of ``origin``."""
    text = "\n".join(f"{name}={value}" for name, value in sorted(origin.items()))
    return folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"


def read_cache(path: Path, origin: Mapping[str, str]) -> dict[str, Tensor] | None:
    """The tensors of ``path``; None if they are not there, not readable, or not made of ``origin``."""
    if not path.exists():
        return None
    try:
        tensors, metadata = load_tensors(path)
    except CheckpointError as error:
        _LOG.warning(f"{error.happened}: it is made anew")
        return None
    if metadata != dict(origin):
        _LOG.warning(f"{path} was made of something else: it is made anew")
        return None
    return tensors


def cached(
    folder: Path, kind: str, origin: Mapping[str, str], make: Callable[[], Mapping[str, Tensor]]
) -> Mapping[str, Tensor]:
    """What ``make`` gives, from the cache where it is there.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    path = cache_file(folder, kind, origin)
    with locked(path):
        found = read_cache(path, origin)
        if found is not None:
            return found
        made = make()
        save_tensors(path, made, origin)
        return made


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other process from making ``path`` meanwhile; makes the folder.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f".{path.name}.lock").open("a")
    except OSError as error:
        raise CheckpointError(
            f"the cache folder {path.parent} cannot be used ({error.strerror})", "Choose another with --cache"
        ) from error
    with file:
        with contextlib.suppress(OSError):  # some network file systems have no locks: then the second one works twice
            fcntl.flock(file, fcntl.LOCK_EX)  # closing the file gives it up
        yield
