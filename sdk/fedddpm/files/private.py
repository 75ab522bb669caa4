"""Files that hold a private key: who may be able to open them.

The rule is PostgreSQL's for its server's key: it belongs to this user, or to root; what belongs to this user is for
this user alone; what belongs to root may be open to a group, for that is how root gives a key to a service, and how
Kubernetes mounts a secret (root:fsGroup).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedddpm.errors import ConfigError
from fedddpm_protocol.foreign.given_values import named

_OWN, _BY_GROUP = 0o600, 0o640
_MOUNTED = "in Kubernetes mount the secret with defaultMode 0440 and let the pod run with an fsGroup, not as root"


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
            refuse_open(stat.S_IMODE(found.st_mode), found.st_uid, _user(), path, what)
        yield file


def _unreadable(error: OSError | ValueError, path: Path, what: str, make: str) -> ConfigError:
    why = error.strerror if isinstance(error, OSError) else "no possible name of a file"
    happened = f"{named(what, path)} cannot be read ({why})"
    if not isinstance(error, PermissionError):
        return ConfigError(happened, make)
    return ConfigError(
        happened,
        f"Start this as the user that it belongs to, or let that user own it (this is user {_user()}); {_MOUNTED}",
    )


def refuse_open(mode: int, owner: int, user: int, path: Path, what: str) -> None:
    """ConfigError where more people than the rule allows may open a file of this mode and owner, read by ``user``."""
    if owner not in (0, user):
        raise ConfigError(
            f"{what} {path} belongs to user {owner}, who may open and change it; this is user {user}",
            f"Run: chown {user} {path} && chmod 600 {path}, or start this as user {owner}; {_MOUNTED}",
        )
    by_group = owner == 0 != user
    allowed = _BY_GROUP if by_group else _OWN
    if mode & (stat.S_IRWXG | stat.S_IRWXO) & ~allowed:
        who = "everybody on this machine" if mode & stat.S_IRWXO else "its group"
        raise ConfigError(
            f"{who} may open {what} {path} (mode {mode:04o})",
            f"Run: chmod {'640' if by_group else '600'} {path}; {_MOUNTED}",
        )


def _user() -> int:
    return os.geteuid()
