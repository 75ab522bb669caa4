"""Secrets in files that nobody else can read: one rule for keys and passwords, on a machine and in a mounted secret.

The rule is PostgreSQL's for its TLS key (https://www.postgresql.org/docs/current/ssl-tcp.html): a file of this user is
for this user alone; one that belongs to root may also be readable for a group, since that is how root hands a secret to
a service that runs as somebody else. Kubernetes mounts secrets so: owner root, group ``fsGroup``, mode 0440. One that
belongs to anybody else is refused: its owner can read and change it.
"""

from __future__ import annotations

import os
from pathlib import Path

from fedddpm_protocol.foreign.given_values import shown

_OTHERS, _MORE_THAN_A_GROUP_THAT_READS = 0o077, 0o037


class PrivateFileError(Exception):
    """A secret's file is missing, unreadable or open to others; the message says what to do."""


def read_private(path: Path) -> str:
    """The text in a secret's file, following links; PrivateFileError, also if others can read it."""
    text, objection = read_and_judge(path)
    if objection is not None:
        raise PrivateFileError(objection)
    return text


def read_and_judge(path: Path) -> tuple[str, str | None]:
    """The text and what is wrong with the file's rights, for who looks first whether it is the right file.

    Rights are those of the file that is read, not of a name that may lead elsewhere a moment later. PrivateFileError,
    with FileNotFoundError as its cause if there is none.
    """
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            text = file.read()
    except OSError as error:
        raise PrivateFileError(f"{shown(path)} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PrivateFileError(f"{path} cannot be read: it is no text") from error
    except ValueError:  # no file's name can be like that
        raise PrivateFileError(f"{shown(path)} cannot be read: it is no file's name") from None
    is_open = too_open(status.st_mode, status.st_uid, os.geteuid())
    return text, _what_to_do(path, status.st_mode & 0o777, status.st_uid) if is_open else None


def too_open(mode: int, owner: int, user: int) -> bool:
    """Whether others than ``user`` and root could use a secret in a file of this mode and owner."""
    by_root_for_another = owner == 0 and user != 0
    return owner not in (0, user) or bool(mode & (_MORE_THAN_A_GROUP_THAT_READS if by_root_for_another else _OTHERS))


def _what_to_do(path: Path, mode: int, owner: int) -> str:
    if owner not in (0, os.geteuid()):
        return (
            f"{path} belongs to another user (id {owner}), who can read and change it; a secret's file belongs to the "
            f"user that runs this (id {os.geteuid()}) or to root. Run as root: chown {os.geteuid()} {path}"
        )
    found = f"{path} can be read by others (mode {mode:o})"
    if owner == 0 and os.geteuid() != 0:
        return f"{found}; run as root: chmod 640 {path} (of a mounted secret: set defaultMode to 0440)"
    return f"{found}; run: chmod 600 {path}"
