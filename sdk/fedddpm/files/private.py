"""Reading files that hold a private key, which nobody else may be able to open (see ``foreign.private_files``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedddpm.errors import ConfigError
from fedddpm_protocol.untrusted.file_rights import MOUNTED, complaint_of
from fedddpm_protocol.untrusted.redaction import named


def read_private(path: Path, what: str, make: str) -> bytes:
    """The content of ``path``, which is ``what`` (as in "the identity"); links are followed.

    Raises:
        ConfigError: there is none (then ``make`` says how to get one), it cannot be read, or others may open it.
    """
    with _opened(path, what, make) as file:
        return file.read()


@contextmanager
def private_name(path: Path, what: str, make: str) -> Iterator[str]:
    """A name for ``path`` that holds while inside, for a library that takes names only.

    It is of the open file that was judged where the system has such names (``/dev/fd``), so that another file in its
    place is not read unjudged.

    Raises:
        ConfigError: as of :func:`read_private`.
    """
    with _opened(path, what, make) as file:
        same = Path(f"/dev/fd/{file.fileno()}")
        yield str(same if same.exists() else path)


@contextmanager
def _opened(path: Path, what: str, make: str) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise _unreadable(error, path, what, make) from None
    with file:
        if os.name == "posix":
            found = os.fstat(file.fileno())
            refuse_open(found.st_mode, found.st_uid, _user(), path, what)
        yield file


def _unreadable(error: OSError | ValueError, path: Path, what: str, make: str) -> ConfigError:
    why = error.strerror if isinstance(error, OSError) else "no possible name of a file"
    happened = f"{named(what, path)} cannot be read ({why})"
    if not isinstance(error, PermissionError):
        return ConfigError(happened, make)
    return ConfigError(
        happened,
        f"Start this as the user that it belongs to, or let that user own it (this is user {_user()}); {MOUNTED}",
    )


def refuse_open(mode: int, owner: int, user: int, path: Path, what: str) -> None:
    """ConfigError where more people than the rule allows may open a file of this mode and owner, read by ``user``."""
    complaint = complaint_of(mode, owner, user, path, what)
    if complaint is not None:
        raise ConfigError(complaint.happened, complaint.advice)


def _user() -> int:
    return os.geteuid()
