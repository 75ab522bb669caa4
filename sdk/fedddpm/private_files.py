"""Files that hold a private key: who may be able to open them.

The rule is PostgreSQL's for its server's key: what belongs to this user, for this user alone; what belongs to root may
be open to a group, for that is how root gives a key to a service, and how Kubernetes mounts a secret (root:fsGroup).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fedddpm.errors import ConfigError

_OWN, _BY_GROUP = 0o600, 0o640
_MOUNTED = "in Kubernetes mount the secret with defaultMode 0440 and let the pod run with an fsGroup, not as root"


def read_private(path: Path, what: str, make: str) -> bytes:
    """The content of ``path``, which is ``what`` (as in "the identity"); links are followed.

    Raises:
        ConfigError: there is none (then ``make`` says how to get one), it cannot be read, or others may open it.
    """
    try:
        with path.open("rb") as file:
            _refuse(os.fstat(file.fileno()), path, what)
            return file.read()
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {path} cannot be read ({error.strerror})", make) from None
    except OSError as error:
        raise ConfigError(
            f"{what} {path} cannot be read ({error.strerror})",
            f"Start this as the user that it belongs to, or let that user own it (this is user {_user()}); {_MOUNTED}",
        ) from None


def require_private(path: Path, what: str) -> None:
    """ConfigError where others may open ``path``; whether it can be read is for whoever reads it to say."""
    try:
        found = path.stat()
    except OSError:
        return
    _refuse(found, path, what)


def _refuse(found: os.stat_result, path: Path, what: str) -> None:
    if os.name == "posix":
        refuse_open(stat.S_IMODE(found.st_mode), found.st_uid, _user(), path, what)


def refuse_open(mode: int, owner: int, user: int, path: Path, what: str) -> None:
    """ConfigError where more people than the rule allows may open a file of this mode and owner, read by ``user``."""
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
