"""Private keys in files that only their owner can read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.keys import SigningKey


class KeyFileError(Exception):
    """A key file is missing, unreadable or open to others."""


def write_key(path: Path, key: SigningKey, purpose: str) -> None:
    """Store a new key with mode 0600, and its public half (hex) beside it as ``NAME.pub``.

    Raises KeyFileError if the file exists: a key is never overwritten.
    """
    content = json.dumps({"purpose": purpose, "ed25519_seed": key.seed.hex()}) + "\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KeyFileError(f"{path} exists already; a key is never overwritten. Choose another file") from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    path.with_suffix(".pub").write_text(key.public_key.hex() + "\n")


def read_key(path: Path, purpose: str) -> SigningKey:
    """The key in ``path``; KeyFileError says what is wrong and what to do."""
    try:
        mode = path.stat().st_mode & 0o777
        fields = json.loads(path.read_text())
        if fields["purpose"] != purpose:
            raise KeyFileError(f"{path} holds a key for {fields['purpose']!r}, not for {purpose!r}")
        key = SigningKey(bytes.fromhex(fields["ed25519_seed"]))
    except FileNotFoundError:
        raise KeyFileError(f"{path} does not exist; create it with init or root-keygen first") from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, MalformedError) as error:
        raise KeyFileError(f"{path} is not a key file of this program") from error
    if mode & 0o077:
        raise KeyFileError(f"{path} can be read by others (mode {mode:o}); run: chmod 600 {path}")
    return key
