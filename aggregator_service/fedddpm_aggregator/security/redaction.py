"""What a message may repeat of a value that somebody gave: no secret that was given in the place of its file."""

from __future__ import annotations

from pathlib import Path

from fedddpm_protocol.foreign.showing import holds_key

MOST_SHOWN = 200  # characters of a name


def is_showable(value: str | Path) -> bool:
    """Whether a value names a file that is there, or looks like a name: a short line without JSON or a key's digits."""
    text = str(value)
    looks_so = len(text) < MOST_SHOWN and text.isprintable() and "{" not in text and not holds_key(text)
    return looks_so or _exists(text)


def shown(value: str | Path) -> str:
    """A value as messages name it: itself, or words in its place where it may be a secret."""
    return str(value) if is_showable(value) else "the given value (it may be a secret, so it is not shown)"


def quoted(value: str) -> str:
    """As :func:`shown`, a value itself in quotes."""
    return repr(value) if is_showable(value) else shown(value)


def shown_url(url: str) -> str:
    """A URL without the user and the password in it."""
    before, at, place = url.rpartition("@")
    if not at:
        return url
    scheme, slashes, _ = before.partition("//")
    return f"{scheme}//{place}" if slashes else place


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long, or with a null byte
        return False
