"""Image files to one uint8 array: every mode that Pillow reads, cropped to squares, resized."""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from fedddpm.data.deep_files import stored, why_unreadable
from fedddpm.data.grey_scale import Greys, Span, lossless, settle, stated_span
from fedddpm.data.image_set import ImageSet
from fedddpm.errors import DataError

Bytes = npt.NDArray[np.uint8]

UNREADABLE_LIMIT = 0.1  # the share of unreadable files above which a folder is refused
GRAY_MODES = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "F"))
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_THREADS = 8  # Pillow decodes without Python's lock; more than this waits for the disk


@dataclass(frozen=True)
class Form:
    """What every file becomes: pixels of a side, 1 or 3 channels, and the centre square cut out before, if any."""

    image_size: int
    channels: int
    crop: int | None = None


def decode_files(base: Path, files: Sequence[Path], form: Form, labels: Sequence[int] | None = None) -> ImageSet:
    """Decode ``files`` below ``base`` in their order, with their ``labels`` if there are any.

    Raises:
        DataError: too many cannot be read (the others are left out and listed), or what files of more than 8 bits state
            of their grey values does not fit what they hold.
    """
    images = np.empty((len(files), form.channels, form.image_size, form.image_size), dtype=np.uint8)
    kept: list[int] = []
    skipped: list[str] = []
    deep: dict[int, Greys] = {}  # by place in ``images``
    with warnings.catch_warnings(), ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # Pillow's remarks about odd metadata; what matters is raised
        for place, decoded in enumerate(pool.map(lambda path: _try_decode(path, form), files)):
            if isinstance(decoded, str):
                skipped.append(f"{files[place].relative_to(base)}: {decoded}")
            else:
                images[len(kept)], greys = decoded
                if greys is not None:
                    deep[len(kept)] = greys
                kept.append(place)
    if not kept or len(skipped) > UNREADABLE_LIMIT * len(files):
        raise DataError(
            f"{len(skipped)} of {len(files)} images in {base} cannot be read ({'; '.join(skipped[:3])})",
            "Repair or remove them; up to 10 % unreadable files would be skipped",
        )
    known = None if labels is None else torch.tensor([labels[place] for place in kept], dtype=torch.int64)
    result = ImageSet(torch.from_numpy(images[: len(kept)]), known, tuple(skipped))
    return _settled(result, base, [files[place] for place in kept], deep, form) if deep else result


def _settled(images: ImageSet, base: Path, files: Sequence[Path], deep: Mapping[int, Greys], form: Form) -> ImageSet:
    """Decide on the ranges of all ``deep`` files together; one that stood for another range alone is decoded again."""
    names = [str(files[place].relative_to(base)) for place in deep]
    spans, scaling = settle(str(base), "files", names, list(deep.values()), len(images), _advice)
    for (place, greys), span in zip(deep.items(), spans, strict=True):
        if span != stated_span([greys]):
            again = _try_decode(files[place], form, span)
            if isinstance(again, str):
                raise DataError(f"{files[place]} was read once, and then not any more ({again})", "Start again")
            images.images[place] = torch.from_numpy(again[0].copy())
    others = len(images) - len(deep)
    return replace(images, scaling=scaling + (f"; {others} of 8 bits or fewer as they are" if others else ""))


def _advice(held: Span) -> str:
    return (
        "Name the range in the files (PNG: sBIT, TIFF: tags 340 and 341), or save them with 8 bits,"
        " round(255 * (value - black) / (white - black)) clipped to 0..255, black and white the same at all"
        f" institutions, or with 16 bits that use the whole range{lossless(held)}"
    )


def _try_decode(path: Path, form: Form, span: Span | None = None) -> tuple[Bytes, Greys | None] | str:
    """The pixels and what a file of more than 8 bits holds, or why there are none."""
    try:
        return _decode(path, form, span)
    except UnidentifiedImageError:
        return why_unreadable(path)
    except _UNREADABLE as error:
        return str(error)


def _decode(path: Path, form: Form, span: Span | None) -> tuple[Bytes, Greys | None]:
    """One file -> [C, H, W]; transparent pixels become black, ``span`` or what the file states becomes 0..255."""
    greys = None
    with Image.open(path) as opened:
        deep = stored(opened, path)
        image = ImageOps.exif_transpose(opened)
        if deep is not None:
            image, greys = deep.unfold(image, span)
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
        image = image.convert("L" if form.channels == 1 else "RGB")
        if form.crop is not None:
            left, top = round((image.width - form.crop) / 2), round((image.height - form.crop) / 2)
            image = image.crop((left, top, left + form.crop, top + form.crop))
        pixels = np.asarray(ImageOps.fit(image, (form.image_size, form.image_size), Image.Resampling.BICUBIC))
    return pixels.reshape(form.image_size, form.image_size, form.channels).transpose(2, 0, 1), greys


def common_form(folder: Path, files: Sequence[Path], image_size: int | None, channels: int | None) -> Form:
    """The form of a folder's files, from their headers where it is not given.

    Without ``image_size`` all must be squares of one size; without ``channels`` one colour image makes all colour.

    Raises:
        DataError: the files are not squares of one size.
    """
    if image_size is None or channels is None:
        seen = list(_headers(files))
        channels = channels or (1 if all(mode in GRAY_MODES for mode, _ in seen) else 3)
        image_size = image_size or _common_size(folder, {size for _, size in seen})
    return Form(image_size, channels)


def _headers(files: Iterable[Path]) -> Iterator[tuple[str, tuple[int, int]]]:
    """(mode, size) of every file that is readable as far as its header."""
    for path in files:
        try:
            with Image.open(path) as image:
                yield image.mode, image.size
        except _UNREADABLE:
            continue  # decoding lists it with its reason


def _common_size(folder: Path, sizes: set[tuple[int, int]]) -> int:
    if len(sizes) == 1 and len({side for size in sizes for side in size}) == 1:
        return sizes.pop()[0]
    some = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:5])
    raise DataError(
        f"the images in {folder} are not squares of one size ({some or 'none is readable'})",
        "Say image_size=..., and they will be cropped and resized",
    )
