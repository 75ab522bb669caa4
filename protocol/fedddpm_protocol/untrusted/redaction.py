"""What a message may repeat of a value that somebody gave, where it may be a key or a password by mistake.

    >>> quoted("keys/root.pub")
    "'keys/root.pub'"
    >>> quoted('{"format": "fedddpm-identity-1", "seed": "00"}')
    'the content of a private key file (not shown)'
    >>> shown_url("https://us:secret@host:443/x")
    'https://host:443/x'

Only what looks like a name or a path is repeated: errors go to logs, and logs go to people who should hold no key. No
value is looked up: a file that is there may have a secret as its name as well.
"""

from __future__ import annotations

import re

from fedddpm_protocol.untrusted.plain_text import holds_key

_LONGEST_NAME = 200
_PRIVATE = re.compile(r'"(seed|private_?key|secret_?key)"|PRIVATE KEY', re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def may_be_shown(text: str) -> bool:
    """Whether ``text`` may be repeated: one short line without JSON, PEM, or the digits of a key."""
    one_line = text.isprintable() and len(text) < _LONGEST_NAME
    return one_line and "{" not in text and "-----" not in text and not holds_key(text)


def holds_private_key(text: str) -> bool:
    """Whether ``text`` is the content of a private key file, JSON or PEM."""
    return _PRIVATE.search(text) is not None


def shown(given: object) -> str:
    """``given`` as text where it may be shown, else what kind of thing it is."""
    text = str(given)
    return text if may_be_shown(text) else _kind(text)


def quoted(given: object) -> str:
    """As :func:`shown`, a value itself in quotes."""
    text = str(given)
    return repr(text) if may_be_shown(text) else _kind(text)


def named(what: str, path: object) -> str:
    """``what`` (as in "the identity") with its path, if it is one."""
    text = str(path)
    return f"{what} {text}" if may_be_shown(text) else f"{what}, given as {_kind(text)}"


def shown_url(url: str) -> str:
    """A URL without the user and the password in it."""
    before, at, place = url.rpartition("@")
    if not at:
        return url
    scheme = _SCHEME.match(before)
    return f"{scheme[0]}{place}" if scheme else place


def _kind(text: str) -> str:
    return f"{_kind_in_words(text)} (not shown)"


def _kind_in_words(text: str) -> str:
    if holds_private_key(text):
        return "the content of a private key file"
    if text.lstrip().startswith("{"):
        return "the content of a JSON file"
    if "-----" in text:
        return "the content of a PEM file"
    return "what may be the digits of a key" if holds_key(text) else f"a text of {len(text)} characters"
