"""How to show a value that somebody gave, where it may be a key or a password by mistake.

    >>> shown("keys/root.pub")
    "'keys/root.pub'"
    >>> shown('{"format": "fedddpm-identity-1", "seed": "00"}')
    'what was given, the content of a private key file (not shown),'

Only what looks like a path is repeated: errors go to logs, and logs go to people who should hold no key.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedddpm_protocol.foreign.showing import holds_key

_LONGEST_PATH = 200
_PRIVATE = re.compile(r'"(seed|private_?key|secret_?key)"|PRIVATE KEY', re.IGNORECASE)


def looks_like_path(text: str) -> bool:
    """Whether ``text`` may be repeated: one short line without JSON, PEM, or the digits of a key."""
    one_line = text.isprintable() and len(text) < _LONGEST_PATH
    return one_line and "{" not in text and "-----" not in text and not holds_key(text)


def holds_private_key(text: str) -> bool:
    """Whether ``text`` is the content of a private key file, JSON or PEM."""
    return _PRIVATE.search(text) is not None


def shown(given: str | Path) -> str:
    """``given`` in quotes where it looks like a path, else what kind of thing it is."""
    text = str(given)
    if looks_like_path(text):
        return repr(text)
    return f"what was given, {_kind(text)} (not shown),"


def named(what: str, path: Path) -> str:
    """``what`` (as in "the identity") with its path, if it is one."""
    text = str(path)
    return f"{what} {text}" if looks_like_path(text) else f"{what}, given as {_kind(text)} (not shown)"


def _kind(text: str) -> str:
    if holds_private_key(text):
        return "the content of a private key file"
    if text.lstrip().startswith("{"):
        return "the content of a JSON file"
    if "-----" in text:
        return "the content of a PEM file"
    return "perhaps the digits of a key" if holds_key(text) else f"a text of {len(text)} characters"
