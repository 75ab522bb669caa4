"""Reading secrets in files that nobody else may be able to open (see ``foreign.private_files``)."""

from __future__ import annotations

import os
from pathlib import Path

from fedddpm_protocol.untrusted.file_rights import complaint_of
from fedddpm_protocol.untrusted.redaction import shown


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
    complaint = complaint_of(status.st_mode, status.st_uid, os.geteuid(), path)
    return text, str(complaint) if complaint is not None else None
