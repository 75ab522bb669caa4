"""Grey values of more than eight bits: what pictures state of them, what they hold, and what becomes of them.

A network learns from 0..255. Pictures of 8 bits and less are taken as they are. In all others the file must say which
value is black and which is white, by its depth or more exactly, and what it says must fit what the set holds: 12 bits
in a 16-bit file, CT with an offset or 32-bit whole numbers would become one grey, and nobody would see it from a loss.

**Why a quarter.** Values that span at most a quarter of the stated range leave 64 of 256 greys: this is what 14 bits in
a 16-bit file come to, the widest of the usual detectors (10, 12 and 14 bits). What spans more loses one bit of eight at
most, and shows in the line at the start.

**Why the set and not the file.** One dark picture among bright ones is a dark picture; a set that is dark throughout is
a wrong range. A tenth of the files (the share that may be unreadable, too) is left aside at both ends, so that one dead
pixel or one stray file does not vouch for all others.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedddpm.errors import DataError

Span = tuple[float, float]  # smallest and largest value; as a scale: what becomes 0 and what becomes 255
PART = 0.25  # of the stated range; a set that spans no more is refused
_STRAY = 0.1  # the share of pictures that cannot vouch for the others


@dataclass(frozen=True)
class Greys:
    """What one picture states of its grey values, and which it holds.

    ``depth``: the range of its number format; None where that says nothing (floats). ``tagged``: the range named in
    TIFF's Min- and MaxSampleValue. ``significant``: bits named in PNG's sBIT, if fewer than its depth.
    """

    kind: str  # for a sentence: "16-bit", "32-bit float"
    depth: Span | None
    held: Span
    tagged: Span | None = None
    significant: int | None = None

    @property
    def family(self) -> Hashable:
        """Pictures of one family are judged together."""
        return self.kind, self.depth, self.tagged is not None, self.significant


def stated_span(family: Sequence[Greys]) -> Span | None:
    """The range that pictures of one family state together; None if they state none.

    By PNG's words samples with an sBIT are spread over all 16 bits; many writers leave them as they were. A value
    beyond those bits shows which. By TIFF's words Min- and MaxSampleValue may be no more than the values that one
    file happens to use: they are a scale where all files name the same.
    """
    first = family[0]
    if first.significant is not None and all(one.held[1] < 2**first.significant for one in family):
        return 0, 2**first.significant - 1
    if first.tagged is not None and len({one.tagged for one in family}) == 1:
        return first.tagged
    return first.depth


def settle(
    place: str, what: str, names: Sequence[str], greys: Sequence[Greys], total: int, advice: Callable[[Span], str]
) -> tuple[list[Span], str]:
    """The range of every picture, decided family by family, and a sentence about them.

    ``what`` they are ("files"), with their ``names``, out of ``total``; ``advice`` is given the values found.

    Raises:
        DataError: what a family states does not fit what it holds, with the numbers and what to do.
    """
    spans: list[Span] = [(0.0, 0.0)] * len(greys)
    sentences = []
    for places in _families(greys):
        family = [greys[i] for i in places]
        span, held = stated_span(family), _union(family)
        trouble = _misfit(family, span, held)
        if span is None or trouble:
            some = ", ".join(names[i] for i in places[:3]) + (", ..." if len(places) > 3 else "")
            raise DataError(f"{len(places)} of {total} {what} in {place} ({some}) are {trouble}", advice(held))
        for i in places:
            spans[i] = span
        sentences.append(
            f"{family[0].kind} {what} ({len(places)}), {in_words(span)} by their {_source(family, span)}"
            f" mapped to 0..255{_dark_ones(family, span)}"
        )
    return spans, "; ".join(sentences[:3]) + (f"; {len(sentences) - 3} more kinds" if len(sentences) > 3 else "")


def _families(greys: Sequence[Greys]) -> list[list[int]]:
    found: dict[Hashable, list[int]] = {}
    for i, one in enumerate(greys):
        found.setdefault(one.family, []).append(i)
    return list(found.values())


def _misfit(family: Sequence[Greys], span: Span | None, held: Span) -> str:
    """What the pictures are that cannot be mapped by ``span``; empty if they can."""
    kind, hold = family[0].kind, f"hold {in_words(held)}"
    if span is None:
        why = _differing(family) or "which says nothing of black and white"
        return f"{kind}, {why}, and {hold}"
    states = f"{kind}, {in_words(span)} by their {_source(family, span)}"
    if held[0] < span[0] or held[1] > span[1]:
        return f"{states}, but {hold}"
    low, high = _core(family)
    share = max(0.0, high - low) / (span[1] - span[0])
    if held[0] != held[1] and share <= PART:  # one value only: no range to judge by, and said at the start
        most = "" if (low, high) == held else f" (nine files in ten: {in_words((low, high))})"
        return f"{states}, but {hold}{most}: {100 * share:.2g} % of the range, which would leave almost one grey"
    if span == family[0].depth and span[0] < 0 <= held[0]:
        return f"{states}, but hold no value below 0 ({in_words(held)}), so black may be 0 or {in_words((span[0],))}"
    return ""


def _differing(family: Sequence[Greys]) -> str:
    tags = sorted({one.tagged for one in family if one.tagged is not None})
    if not tags:
        return ""
    return f"and they name different Min- and MaxSampleValues ({in_words(tags[0])}, {in_words(tags[-1])}, ...)"


def _source(family: Sequence[Greys], span: Span) -> str:
    first = family[0]
    if span == first.depth:
        differ = len({one.tagged for one in family}) > 1
        return "depth" + (", as their Min- and MaxSampleValue differ" if differ else "")
    return "sBIT" if first.significant is not None else "Min- and MaxSampleValue"


def _dark_ones(family: Sequence[Greys], span: Span) -> str:
    few = sum(one.held[1] - one.held[0] <= PART * (span[1] - span[0]) for one in family)
    return f" ({few} of them use no more than a quarter of it)" if few else ""


def _union(family: Sequence[Greys]) -> Span:
    return min(one.held[0] for one in family), max(one.held[1] for one in family)


def _core(family: Sequence[Greys]) -> Span:
    """The union without the tenth of the pictures that reach lowest and highest."""
    aside = int(_STRAY * len(family))
    lows, highs = sorted(one.held[0] for one in family), sorted(one.held[1] for one in family)
    return lows[aside], highs[-1 - aside]


def in_words(values: Sequence[float]) -> str:
    """``0 to 4095``, without decimals where there are none."""
    return " to ".join(str(int(v)) if float(v).is_integer() else f"{v:.6g}" for v in values)


def lossless(held: Span) -> str:
    """An example of a window, as the end of an advice: the one that loses nothing; empty for one value only."""
    black, white = (in_words([value]) for value in held)
    return "" if black == white else f"; black = {black} and white = {white} would lose nothing here"


def integer_range(dtype: np.dtype[np.generic]) -> Span:
    """What a whole-number format can hold."""
    limits = np.iinfo(dtype)  # type: ignore[type-var]  # checked by whoever calls
    return int(limits.min), int(limits.max)


def to_bytes(values: npt.NDArray[np.generic], span: Span, *, inverted: bool = False) -> npt.NDArray[np.uint8]:
    """Map ``span`` to 0..255, or to 255..0; what lies outside is clipped. 16 bits go by a table, to save memory."""
    if values.dtype not in (np.uint16, np.int16):
        return _mapped(values, span, inverted)
    low, high = integer_range(values.dtype)
    table = _mapped(np.arange(low, high + 1), span, inverted)
    unsigned = values if low == 0 else (values.view(np.uint16) ^ np.uint16(0x8000))  # -32768 is the table's first
    return table[unsigned]  # type: ignore[no-any-return]


def _mapped(values: npt.NDArray[np.generic], span: Span, inverted: bool) -> npt.NDArray[np.uint8]:
    black, white = reversed(span) if inverted else span
    share = (values.astype(np.float64) - black) / (white - black)
    return np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)
