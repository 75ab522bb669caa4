"""Private keys in files that only their owner can read."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fedddpm_aggregator.security.private_files import PrivateFileError, read_and_judge
from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives.keys import SealingKey, SigningKey
from fedddpm_protocol.untrusted.json_reading import read_json
from fedddpm_protocol.untrusted.plain_text import message
from fedddpm_protocol.untrusted.redaction import may_be_shown, named

SERVER_PURPOSE, ROOT_PURPOSE = "fedddpm-aggregator", "fedddpm-federation-root"
OPERATOR_PURPOSE, AUDITOR_PURPOSE = "fedddpm-operator", "fedddpm-auditor"
_SIGNING, _SEALING = "ed25519_seed", "x25519_private"  # the field that holds the key
Key = TypeVar("Key")
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_NAMES = {
    SERVER_PURPOSE: "the aggregator's own private key (server.key, made by init)",
    ROOT_PURPOSE: "the federation's private root key (made by federation root-keygen)",
    OPERATOR_PURPOSE: "an operator's private key (made by operator keygen)",
    AUDITOR_PURPOSE: "the auditor's private key (made by auditor keygen)",
}
_PUBLIC, _NO_KEY = "a public key (64 hex digits)", "not a key file"
_PUBLIC_KEY = re.compile("[0-9a-fA-F]{64}")


class KeyFileError(Exception):
    """A key file is missing, unreadable or open to others."""

    def __init__(self, text: str) -> None:
        super().__init__(message(text))


def write_key(path: Path, key: SigningKey | SealingKey, purpose: str, owner: str | None = None) -> None:
    """Store a new key with mode 0600, and its public half (hex) beside it as ``NAME.pub``.

    ``owner`` is the id that the key's requests are signed with.

    Raises KeyFileError if the file exists: a key is never overwritten.
    """
    field, secret = (_SIGNING, key.seed) if isinstance(key, SigningKey) else (_SEALING, key.private)
    fields = {"purpose": purpose, field: secret.hex()} | ({"id": owner} if owner is not None else {})
    content = json.dumps(fields) + "\n"
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
    return _read(path, purpose, lambda fields: SigningKey(bytes.fromhex(fields[_SIGNING])))


def read_sealing_key(path: Path) -> SealingKey:
    """The auditor's key in ``path``; KeyFileError as :func:`read_key`."""
    return _read(path, AUDITOR_PURPOSE, lambda fields: SealingKey(bytes.fromhex(fields[_SEALING])))


def _read(path: Path, purpose: str, made: Callable[[Any], Key]) -> Key:
    wanted = _NAMES[purpose]
    try:
        text, objection = read_and_judge(path)
        found = _kind_of(text)
        if found != wanted:
            raise KeyFileError(f"{path} is {found}; expected is {wanted}")
        key = made(read_json(text))
    except PrivateFileError as error:
        cause = error.__cause__
        if not may_be_shown(str(path)):
            if isinstance(cause, OSError) and cause.errno not in _NO_SUCH_FILE:
                what = named(f"the file of {wanted}", path)
                raise KeyFileError(f"{what}, cannot be read: {cause.strerror}") from None
            raise KeyFileError(_not_a_file(str(path), f"the file of {wanted}")) from None
        if isinstance(cause, FileNotFoundError):
            raise KeyFileError(f"{path} does not exist; expected is {wanted}") from None
        raise KeyFileError(str(error)) from error
    except (ValueError, KeyError, TypeError, MalformedError) as error:
        raise KeyFileError(f"{path} is damaged; expected is {wanted}") from error
    if objection is not None:
        raise KeyFileError(objection)
    return key


def read_owner(path: Path, purpose: str) -> str | None:
    """The id that a key file names, None if it names none; KeyFileError as :func:`read_key`."""
    read_key(path, purpose)
    owner = read_json(path.read_text()).get("id")
    return owner if isinstance(owner, str) else None


def read_public_key(text: str) -> bytes:
    """The public key that ``text`` is (64 hex digits), or that stands in the file it names; KeyFileError."""
    if _PUBLIC_KEY.fullmatch(text.strip()):
        return bytes.fromhex(text.strip())
    path = Path(text)
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} is no public key; it has 64 hex digits") from None
    except (OSError, ValueError):  # ValueError: no name of a file can be like that
        if not may_be_shown(text):
            raise KeyFileError(_not_a_file(text, "a public key (64 hex digits, as in root.pub)")) from None
        raise KeyFileError(f"{text!r} is no public key, nor a file with one; it has 64 hex digits") from None
    if not _PUBLIC_KEY.fullmatch(content.strip()):
        raise KeyFileError(f"{path} is {_kind_of(content)}; expected is a public key (64 hex digits)")
    return bytes.fromhex(content.strip())


def _not_a_file(text: str, wanted: str) -> str:
    """What is wrong with a value that is no file's name and may be a key itself, without repeating it."""
    kind = _kind_of(text)
    if kind == _NO_KEY:
        return f"the value is no key, nor the name of a file that can be read (it is not shown); expected is {wanted}"
    advice = "" if kind == _PUBLIC else "; treat this key as known to whoever reads this machine's environment"
    return f"the value itself is {kind}; give {wanted}{advice}"


def _kind_of(text: str) -> str:
    """What a file that is used as a key is, in words."""
    if _PUBLIC_KEY.fullmatch(text.strip()):
        return _PUBLIC
    try:
        fields = read_json(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        return _NO_KEY
    if str(fields.get("format", "")).startswith("fedddpm-identity"):
        return "an institution's identity (made by fedddpm keygen)"
    return _NAMES.get(str(fields.get("purpose")), "not a key file of this program")
