"""Text from elsewhere as it may be shown: on a terminal, in a log, in an error.

Elsewhere is whatever this program did not write itself: the other side, a proxy, a file and its name, a value that
somebody gave. Such text can hold what moves a terminal's cursor, begins a line of a log, turns the direction of
writing, is not seen at all, goes on without end, or is a private key that was given in the wrong place.

    >>> plain("all is well\\x1b[2J\\n12:00 the run has ended")
    'all is well\\\\x1b[2J\\\\n12:00 the run has ended'
    >>> without_keys("seed:" + "0f" * 32 + " is no folder")
    'seed:(what looks like a key is not shown) is no folder'
"""

from __future__ import annotations

import re
from itertools import accumulate, pairwise

MOST_SHOWN = 4000  # characters of a message
_LONGEST_SEARCHED = 8 * MOST_SHOWN  # characters of a message
_LONGEST_ESCAPE = 10  # characters in the place of one
_DEEPEST = 4  # URLs within URLs
HIDDEN = "(what looks like a key is not shown)"

# Printable by Unicode's tables, and yet invisible: fillers, joiners and selectors.
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_64 = r"(?:[A-Za-z0-9+/_-]|%(?:25)*2[BbFf])"  # a digit of base64, also in a URL, or in a URL within one
_END = r"(?:=|%(?:25)*3[Dd])"
_DIGITS = re.compile(
    r"-----BEGIN [^-]*-----.*?(?:-----END [^-]*-----|\Z)"  # PEM
    r"|[0-9A-Fa-f]{48,}"  # 64 digits, or some forgotten or doubled
    rf"|(?<![A-Za-z0-9+/_-]){_64}{{42,44}}{_END}{{1,2}}"  # base64 of 32 bytes, and of one more or less
    rf"|{_64}{{43}}{_END}",  # behind a prefix that could be base64 as well
    re.DOTALL,
)
_LIKELY = re.compile(r"(?=[A-Za-z]*[0-9])[0-9A-Za-z]{32,}")  # digits of something, whatever it is
_RUN = re.compile(_64 + "{43,}")
_QUOTED = re.compile("%([0-9A-Fa-f]{2})")  # a byte in a URL; keys are ASCII, so no other encoding matters
_LINE_ENDS = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def plain(text: str, most: int = MOST_SHOWN) -> str:
    """``text`` as one line that is seen as it is: what is not printable as an escape, and ``most`` characters of it.

    What is cut off is said at the end, within ``most``. Plain text stays as it is.
    """
    if len(text) > 4 * most + 100:  # no work for what is cut off anyway
        text, left = text[: 4 * most], len(text) - 4 * most
    else:
        left = 0
    if not text.isprintable() or _UNSEEN.search(text):
        text = "".join(map(_shown, text))
    return text if len(text) <= most and not left else _cut(text, most, left)


def plain_text(text: str) -> str:
    """A text of this program's own lines, each made plain and none cut."""
    return "\n".join(plain(line, _LONGEST_ESCAPE * len(line)) for line in text.split("\n"))


def plain_lines(text: str, most: int = MOST_SHOWN) -> str:
    """As :func:`plain` for a text of several lines, such as a trace: each begins with a mark that no log line has."""
    return "\n".join(f"  | {plain(line, most)}" for line in _LINE_ENDS.split(text))


def plain_values(value: object, most: int = MOST_SHOWN) -> object:
    """A value for JSON with every text in it made :func:`plain`, names too."""
    if isinstance(value, str):
        return plain(value, most)
    if isinstance(value, dict):
        return {plain(str(name), most): plain_values(item, most) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item, most) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else plain(str(value), most)


def holds_key(text: str) -> bool:
    """Whether something in ``text``, read as it is or as a part of a URL, may be the digits of a key.

    For a value that somebody gave, which is worth little to a reader: in doubt it does.
    """
    return any(kind.search(read) for read in (text, _unquoted(text)) for kind in (_DIGITS, _LIKELY)) or any(
        map(_unpadded, _RUN.findall(text))
    )


def without_keys(text: str) -> str:
    """``text`` with words in the place of what looks like the digits of a whole key, for a message around it."""
    return _RUN.sub(lambda run: HIDDEN if _unpadded(run[0]) else run[0], _DIGITS.sub(HIDDEN, text))


def message(text: str) -> str:
    """What an error says: plain, and without keys."""
    if len(text) > _LONGEST_SEARCHED:
        return plain(f"{without_keys(text[:_LONGEST_SEARCHED])}.. ({len(text)} characters)")
    return plain(without_keys(text))


def _unquoted(text: str) -> str:
    """Read as a part of a URL, also of one within another."""
    for _ in range(_DEEPEST):
        text = _QUOTED.sub(lambda quoted: chr(int(quoted[1], 16)), text)
    return text


def _shown(character: str) -> str:
    if character.isprintable() and not _UNSEEN.match(character):
        return character
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _cut(text: str, most: int, left: int) -> str:
    note = f".. ({left + len(text)} characters)"
    return text[: max(0, most - len(note))] + note[:most]


def _unpadded(run: str) -> bool:
    """Whether 43 characters in a row change their kind as often as random base64 does, and no words."""
    digits = _unquoted(run)
    kinds = ["0" if one.isdigit() else "A" if one.isupper() else "a" if one.islower() else "" for one in digits]
    changes = [bool(one and two and one != two) for one, two in pairwise(kinds)]
    seen = list(accumulate(changes, initial=0))
    return any(late - early >= _CHANGES for early, late in zip(seen, seen[42:], strict=False))


_CHANGES = 13  # of 42; random base64 has 27 +- 3, paths have few
