"""Arrays of images in memory: their type states the range of grey values, as the depth of a file does."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedddpm.data.grey_scale import Greys, Span, integer_range, lossless, settle, to_bytes
from fedddpm.errors import DataError


def as_bytes(path: Path, images: npt.NDArray[np.generic]) -> tuple[npt.NDArray[np.uint8], str]:
    """Images [N, ...] of numbers or truth values as uint8, and how they were mapped; empty for uint8.

    Raises:
        DataError: their type states no range, or they use a small part of it.
    """
    if images.dtype == np.uint8 or not images.size:
        return images.astype(np.uint8, copy=False), ""
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255), "truth values mapped to 0 and 255"
    kind, whole = str(images.dtype), images.dtype.kind in "ui"
    flat = images.reshape(len(images), -1)
    lows, highs = flat.min(1), flat.max(1)
    if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
        raise DataError(f"the images in {path} are {kind} and hold values that are no numbers", _advice((0, 1)))
    depth = integer_range(images.dtype) if whole else None
    greys = [Greys(kind, depth, (float(a), float(b))) for a, b in zip(lows, highs, strict=True)]
    spans, scaling = settle(str(path), "images", [str(i) for i in range(len(greys))], greys, len(greys), _advice)
    native = images.astype(images.dtype.newbyteorder("="), copy=False)
    return to_bytes(native, spans[0]), scaling


def _advice(held: Span) -> str:
    return (
        "Save them as uint8, numpy.clip((images.astype(float) - black) * (255 / (white - black)), 0, 255).round()"
        f".astype('uint8'), black and white the same at all institutions{lossless(held)}"
    )
