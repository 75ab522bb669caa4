"""Image files of more than eight bits, or with a sign: their values, and what the files state of them.

Pillow reads the numbers, but clips them where they become bytes, leaves 16 bits with white as the smallest value
upside down, and reads signed bytes as unsigned ones. Of 16-bit colour it gives the upper byte only.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, TiffImagePlugin

from fedddpm.data.grey_scale import Greys, Span, stated_span, to_bytes

Values = npt.NDArray[np.generic]
_BITS, _PHOTOMETRIC, _FORMAT = 258, 262, 339  # TIFF tags
_LOWEST, _HIGHEST = (
    (340, 280),
    (341, 281),
)  # SMin-, MinSampleValue; SMax-, MaxSampleValue
_SIGNED, _FLOAT = 2, 3  # TIFF's SampleFormat
_PNG_HEADER = 8


@dataclass(frozen=True)
class Stored:
    """How the grey values of a file are stored, by its header."""

    kind: str
    depth: Span | None
    dtype: np.dtype[Any] | None  # what Pillow's numbers are to be read as; None: Pillow made bytes of them
    tagged: Span | None = None
    significant: int | None = None
    inverted: bool = False  # the smallest value is white
    factor: float = 1.0  # from Pillow's numbers to those of the file

    def unfold(self, image: Image.Image, span: Span | None) -> tuple[Image.Image, Greys]:
        """The picture in 8 bits, mapped by ``span`` or else by what this file alone states, and its greys.

        Raises:
            ValueError: a value is not a number.
        """
        if self.dtype is None:
            return image, self._greys(_colours(image))
        values = self._values(np.asarray(image), self.dtype)
        greys = self._greys(values)
        span = span or stated_span([greys]) or greys.held  # of files without any range the set is refused
        if span[0] == span[1]:
            span = span[0], span[0] + 1
        return Image.fromarray(to_bytes(values, span, inverted=self.inverted)), greys

    def _values(self, numbers: Values, dtype: np.dtype[Any]) -> Values:
        if self.factor != 1:
            return np.rint(numbers.astype(np.float64) * self.factor).astype(dtype)
        numbers = numbers.astype(numbers.dtype.newbyteorder("="), copy=False)
        return numbers.view(dtype) if numbers.dtype.itemsize == dtype.itemsize else numbers.astype(dtype)

    def _greys(self, values: Values) -> Greys:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError("it holds values that are no numbers")
        by = self.factor if self.dtype is None else 1
        held = float(values.min()) * by, float(values.max()) * by
        return Greys(self.kind, self.depth, held, self.tagged, self.significant)


def stored(image: Image.Image, path: Path) -> Stored | None:
    """How the grey values of ``image``, opened and not read yet, are stored; None: in 8 bits or fewer, without a sign.

    Raises:
        ValueError: a TIFF does not say whether its smallest value is black or white.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _stored_in_tiff(image)
    if image.format == "PNG":
        return _stored_in_png(image, path) if "16" in str(_raw_form(image)) else None
    if image.format == "PPM" and image.mode != "F":
        return _stored_in_ppm(image)
    if image.mode.startswith("I;16"):
        return _whole_numbers(16, signed=False)
    if image.mode == "I":
        return _whole_numbers(32, signed=True)
    return Stored("32-bit float", None, np.dtype(np.float32)) if image.mode == "F" else None


def _raw_form(image: Image.Image) -> Any:
    """What Pillow's decoder is told of the numbers in the file, before it has read them."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    return tiles[0][3] if tiles else ""


def _whole_numbers(bits: int, *, signed: bool, **more: Any) -> Stored:
    depth = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    dtype = np.dtype(f"{'i' if signed else 'u'}{(bits + 7) // 8}")
    white = " min-is-white" if more.get("inverted") else ""
    return Stored(f"{bits}-bit{' signed' if signed else ''}{white}", depth, dtype, **more)


def _colour(depth: Span) -> Stored:
    return Stored("16-bit colour", depth, None, factor=depth[1] / 255)


def _stored_in_tiff(image: TiffImagePlugin.TiffImageFile) -> Stored | None:
    tags = image.tag_v2
    bits, form = int(_first(tags.get(_BITS, 1))), int(_first(tags.get(_FORMAT, 1)))
    if len(image.getbands()) > 1 or image.mode == "P":
        return _colour((0.0, 2.0**bits - 1)) if bits > 8 else None
    if _PHOTOMETRIC not in tags:
        raise ValueError("it lacks the tag that says whether its smallest value is black or white; save it anew")
    if bits <= 8 and form != _SIGNED:
        return None  # Pillow turns these itself where white is the smallest value
    inverted = tags[_PHOTOMETRIC] == 0
    if form == _FLOAT:
        kind = f"{bits}-bit float{' min-is-white' if inverted else ''}"
        return Stored(kind, None, np.dtype(np.float32), _sample_values(tags, None), inverted=inverted)
    plain = _whole_numbers(bits, signed=form == _SIGNED, inverted=inverted)
    tagged = _sample_values(tags, plain.depth)
    return _whole_numbers(bits, signed=form == _SIGNED, inverted=inverted, tagged=tagged)


def _first(value: Any) -> Any:
    if isinstance(value, tuple):
        return value[0] if value else None
    return value


def _sample_values(tags: TiffImagePlugin.ImageFileDirectory_v2, depth: Span | None) -> Span | None:
    """The range in TIFF's tags for it; what is missing is that of the depth. None: no tag says more than the depth."""
    low, high = (
        next((float(_first(tags[number])) for number in numbers if _first(tags.get(number)) is not None), None)
        for numbers in (_LOWEST, _HIGHEST)
    )
    low, high = (given if given is not None or depth is None else depth[i] for i, given in enumerate((low, high)))
    if low is None or high is None or not -math.inf < low < high < math.inf or (low, high) == depth:
        return None
    return low, high


def _stored_in_png(image: Image.Image, path: Path) -> Stored:
    if not image.mode.startswith("I"):
        return _colour((0.0, 65535.0))
    bits = _significant_bits(path)
    return _whole_numbers(16, signed=False, significant=bits if bits is not None and 0 < bits < 16 else None)


def _significant_bits(path: Path) -> int | None:
    """The first byte of PNG's sBIT, which stands before the pixels; Pillow skips it."""
    with path.open("rb") as file:
        file.seek(_PNG_HEADER)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"sBIT":
                return (file.read(1) or b"\0")[0]
            if kind == b"IDAT":
                return None
            file.seek(length + 4, 1)
    return None


def _stored_in_ppm(image: Image.Image) -> Stored | None:
    """PGM and PPM name their white; Pillow has stretched it to 65535 or 255 by then."""
    words = _raw_form(image)
    white = words[-1] if isinstance(words, tuple) and len(words) == 2 else 65535 if image.mode == "I" else 255
    if white <= 255:
        return None
    if image.mode != "I":
        return _colour((0.0, float(white)))
    return Stored("16-bit", (0.0, float(white)), np.dtype(np.uint16), factor=white / 65535)


def _colours(image: Image.Image) -> Values:
    bands = np.asarray(image)
    return bands[..., :-1] if image.mode in ("LA", "RGBA", "PA") else bands


def why_unreadable(path: Path) -> str:
    """Why Pillow cannot open a file: no image, or a TIFF of a kind that it does not know."""
    try:
        with path.open("rb") as file:
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
        bits, form, white = (_first(tags.get(number)) for number in (_BITS, _FORMAT, _PHOTOMETRIC))
    except (OSError, SyntaxError, ValueError, TypeError, struct.error):
        return "not an image"
    found = f"BitsPerSample {bits}, SampleFormat {form or 1}, PhotometricInterpretation {white}"
    return f"a damaged TIFF, or of a kind that is not read ({found}); save it with 8 or 16 bits, smallest value black"
