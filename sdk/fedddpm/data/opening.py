"""Images from wherever they are to one tensor in memory."""

from pathlib import Path
from typing import Literal

from fedddpm.data.image_set import ImageSet, split_holdout, spread, to_floats, to_uint8
from fedddpm.data.sources import (
    Labels,
    download_fashion_mnist,
    find_fashion_mnist,
    read_celeba,
    read_cifar10,
    read_fashion_mnist,
    read_folder,
    read_npz,
)
from fedddpm.errors import DataError

__all__ = ["ImageSet", "Split", "open_images", "split_holdout", "to_floats", "to_uint8"]

Split = Literal["train", "test"]
CELEBA_SIZE = 64  # pixels, as in the paper
_NAMED = ("fashion-mnist", "cifar10", "celeba")


def open_images(
    source: str | Path,
    *,
    split: Split = "train",
    image_size: int | None = None,
    channels: int | None = None,
    root: str | Path = "data",
    limit: int | None = None,
    labels: Labels = None,
    cache: str | Path | bool = True,
) -> ImageSet:
    """Open a set of images.

    ``source`` is "fashion-mnist", "cifar10" or "celeba" (looked for below ``root``; the first two are downloaded if
    they are not there), a folder of images, a folder with the idx files of Fashion-MNIST, or an .npz file.
    Files of a folder and CelebA are cropped and resized to ``image_size``; the other sets must have it already.
    ``limit`` keeps that many images, evenly spread over the set. ``split`` does not matter to folders of images.

    ``labels="folders"`` makes the names of a folder's sub-folders the classes, sorted. Institutions must mean the same
    by a number: where one of them lacks a class, all name the classes instead, as ``["cat", "dog"]`` or "cat,dog".

    What had to be decoded is kept in ``cache``, a folder, for the next time. True is ``fedddpm/images`` in the user's
    cache folder, for sets of 8 MiB and more; False keeps nothing: the images then lie nowhere but where they are.

    Raises:
        DataError: nothing usable is there, or size, channels or classes are not what was asked for.
    """
    _check_request(split, image_size, channels, limit)
    name = str(source).lower()
    place = cache if isinstance(cache, bool) else Path(cache)
    is_files = name not in _NAMED and Path(source).is_dir() and find_fashion_mnist(Path(source)) is None
    if labels is not None and not is_files:
        raise DataError(f"classes by sub-folders need a folder of images, not {source}", "Leave labels out")
    if name == "celeba":
        return read_celeba(Path(root), split, image_size or CELEBA_SIZE, channels or 3, limit, cache=place)
    if name == "fashion-mnist":
        data = read_fashion_mnist(find_fashion_mnist(Path(root)) or download_fashion_mnist(Path(root)), split)
    elif name == "cifar10":
        data = read_cifar10(Path(root), split)
    else:
        path = Path(source)
        if is_files:
            return read_folder(path, image_size, channels, limit, labels=labels, cache=place)
        idx_folder = find_fashion_mnist(path)
        data = read_fashion_mnist(idx_folder, split) if idx_folder else _read_file(path, split)
    _require_fit(source, data, image_size, channels)
    return data if limit is None else data.subset(spread(len(data), limit))


def _read_file(path: Path, split: Split) -> ImageSet:
    if path.suffix.lower() == ".npz" and path.is_file():
        return read_npz(path, split)
    what = "is neither a folder nor an .npz file" if path.exists() else "does not exist"
    raise DataError(f"{path} {what}", "Give a folder, an .npz file, or one of fashion-mnist, cifar10, celeba")


def _check_request(split: str, image_size: int | None, channels: int | None, limit: int | None) -> None:
    if split not in ("train", "test"):
        raise DataError(f"there is no split {split!r}", "Use 'train' or 'test'")
    if channels not in (None, 1, 3):
        raise DataError(f"images with {channels} channels are not supported", "Use 1 (grayscale) or 3 (colour)")
    if (image_size is not None and image_size < 1) or (limit is not None and limit < 1):
        raise DataError(f"image_size={image_size}, limit={limit}: both must be at least 1", "Leave them out")


def _require_fit(source: str | Path, data: ImageSet, image_size: int | None, channels: int | None) -> None:
    if image_size not in (None, data.image_size):
        raise DataError(
            f"the images of {source} are {data.image_size}x{data.image_size}, not {image_size}x{image_size}",
            f"Use image_size={data.image_size}, or save them as files in a folder, which are resized",
        )
    if channels not in (None, data.channels):
        raise DataError(
            f"the images of {source} have {data.channels} channels, not {channels}",
            f"Use channels={data.channels}, or save them as files in a folder, which are converted",
        )
