"""The institution's long-lived Ed25519 identity, and public keys as people pass them on.

    >>> from fedddpm.identity import Identity
    >>> Identity.generate("hospital-a").member_id
    'hospital-a'

The private seed is written to one file of mode 0600 and is never printed, logged or put into an error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fedddpm.errors import ConfigError
from fedddpm.files.private import read_private
from fedddpm_protocol.agreement.model_layout import require_name
from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives.keys import KEY_BYTES, SigningKey, fingerprint
from fedddpm_protocol.untrusted.json_reading import read_json
from fedddpm_protocol.untrusted.redaction import holds_private_key, named, quoted

FORMAT = "fedddpm-identity-1"
_NEW_KEY = "Make one with: fedddpm keygen --id NAME --out NAME.key"


class _IdentityFile(BaseModel):
    """Content of an identity file."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    format: str
    id: str
    public_key: str
    seed: str


@dataclass(frozen=True, repr=False)
class Identity:
    """Who this institution is: its id in the roster and its signing key."""

    member_id: str
    key: SigningKey

    def __post_init__(self) -> None:
        try:
            require_name("member id", self.member_id)
        except ValueError as error:
            raise ConfigError(str(error), "Choose another id, for instance hospital-a") from error

    def __repr__(self) -> str:
        return f"Identity({self.member_id!r}, fingerprint={self.fingerprint!r})"

    @classmethod
    def generate(cls, member_id: str) -> Self:
        """A fresh identity from the system's CSPRNG."""
        return cls(member_id, SigningKey.generate())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an identity file.

        Raises:
            ConfigError: there is no such file, it is no identity, or others may read it.
        """
        data = read_private(path, "the identity", _NEW_KEY)
        try:
            content = _IdentityFile.model_validate_json(data)
            identity = cls(content.id, SigningKey(bytes.fromhex(content.seed)))
        except (ValidationError, ValueError, MalformedError):
            raise ConfigError(f"{path} is not an identity file", _NEW_KEY) from None
        if content.format != FORMAT or not hmac.compare_digest(identity.public_key.hex(), content.public_key):
            raise ConfigError(f"the identity {path} is damaged: its two keys do not belong together", _NEW_KEY)
        return identity

    def save(self, path: Path) -> None:
        """Write the identity with mode 0600; ConfigError if ``path`` exists, for a lost key cannot be made again."""
        content = _IdentityFile(
            format=FORMAT, id=self.member_id, public_key=self.public_key.hex(), seed=self.key.seed.hex()
        )
        data = json.dumps(content.model_dump(), indent=2).encode() + b"\n"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise ConfigError(
                f"{path} exists and is not overwritten", "Choose another --out, or move the old key away first"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{named('the key file', path)} cannot be written ({error.strerror})", "Choose a writable folder"
            ) from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        return self.key.public_key

    @property
    def fingerprint(self) -> str:
        """The public key's fingerprint, to be read out on the telephone."""
        return fingerprint(self.public_key)


def load_public_key(source: str | Path | bytes) -> bytes:
    """A 32-byte Ed25519 public key from 64 hex digits, base64, or a file that holds either (or JSON ``public_key``).

    Raises:
        ConfigError: it is none of these; the text is repeated only where it looks like a path.
    """
    if isinstance(source, bytes) and len(source) == KEY_BYTES:
        return source
    text = source.decode(errors="replace") if isinstance(source, bytes) else str(source)
    key = _parse_key(text)
    if key is not None:
        return key
    try:
        content = Path(text).read_text()
    except (OSError, UnicodeDecodeError, ValueError):
        content = ""
    key = _parse_key(content) or _parse_key(_json_public_key(content))
    if key is None:
        raise ConfigError(
            f"{quoted(text)} is neither a public key (64 hex digits or base64) nor a file with one", _ask(text)
        )
    return key


def _ask(text: str) -> str:
    how = "Ask the coordinator for the federation's root public key and compare its fingerprint by telephone"
    if holds_private_key(text):
        return f"Give the public key instead (root.pub, or its 64 hex digits), and keep this one to yourself. {how}"
    return how


def _json_public_key(content: str) -> str:
    try:
        document = read_json(content)
    except ValueError:
        return ""
    found = document.get("public_key", "") if isinstance(document, dict) else ""
    return found if isinstance(found, str) else ""


def _parse_key(text: str) -> bytes | None:
    text = text.strip()
    for parse in (bytes.fromhex, lambda value: base64.b64decode(value, validate=True)):
        try:
            key = parse(text)
        except (ValueError, binascii.Error):
            continue
        if len(key) == KEY_BYTES:
            return key
    return None


def root_id(root_public_key: bytes) -> bytes:
    """SHA-256 of the pinned root key: the federation's name in SPENT records."""
    return hashlib.sha256(root_public_key).digest()
