"""Readers of image files: each turns one kind of source into an :class:`ImageSet` as it lies there.

Fitting size and channels to what the network wants is the business of ``opening``, except where images have to be
decoded one by one (folders, CelebA): there they are resized at once, and kept in a cache.
"""

import gzip
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.npyio import NpzFile

from fedddpm.compute.torchvision_compat import load_torchvision
from fedddpm.data.grey_arrays import as_bytes
from fedddpm.data.image_cache import cached
from fedddpm.data.image_decoding import Bytes, Form, common_form, decode_files
from fedddpm.data.image_set import ImageSet, spread
from fedddpm.errors import DataError

Labels: TypeAlias = str | Sequence[str] | None

IMAGE_SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
_IDX_PREFIXES = {"train": "train", "test": "t10k"}
_CELEBA_CROP = 178  # pixels: the width of the aligned images (Liu 2015), as most diffusion papers crop them


def find_fashion_mnist(folder: Path) -> Path | None:
    """The folder at or below ``folder`` that holds the idx files: plain, or in torchvision's layout."""
    for place in (folder, folder / "FashionMNIST" / "raw"):
        if _idx_file(place, "train-images-idx3-ubyte") is not None:
            return place
    return None


def read_fashion_mnist(folder: Path, split: str) -> ImageSet:
    """The 28x28 grayscale images of Fashion-MNIST (Xiao 2017) from the idx files in ``folder``, gzipped or not."""
    prefix = _IDX_PREFIXES[split]
    images = _read_idx(folder, f"{prefix}-images-idx3-ubyte", 3)
    labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", 1)
    return ImageSet(torch.from_numpy(images[:, None]), torch.from_numpy(labels.astype(np.int64)))


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_idx(folder: Path, name: str, dimensions: int) -> Bytes:
    """An idx file: two zero bytes, type (8 = uint8), number of dimensions, each as 4 bytes big-endian, the bytes."""
    path = _idx_file(folder, name)
    if path is None:
        raise DataError(f"{folder} lacks {name} (or {name}.gz)", "Get all four idx files of Fashion-MNIST")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error})", "Get the file again") from error
    start = 4 + 4 * dimensions
    shape = np.frombuffer(raw[4:start], dtype=">u4").astype(int)
    if raw[:4] != bytes((0, 0, 8, dimensions)) or len(raw) != start + int(np.prod(shape)):
        raise DataError(f"{path} is no idx file of {dimensions} dimensions, or is cut off", "Get the file again")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape).copy()


def _datasets() -> ModuleType:
    load_torchvision()
    import torchvision.datasets  # only after the cure in compute.torchvision_compat

    return torchvision.datasets  # type: ignore[no-any-return]  # torchvision is untyped


def download_fashion_mnist(root: Path) -> Path:
    """Let torchvision fetch Fashion-MNIST into ``root``; returns the folder with the idx files."""
    try:
        _datasets().FashionMNIST(root, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Fashion-MNIST is not below {root} and could not be downloaded ({error})",
            "Put the four idx .gz files into a folder and give that folder (Debian: package dataset-fashion-mnist)",
        ) from error
    return root / "FashionMNIST" / "raw"


def read_cifar10(root: Path, split: str) -> ImageSet:
    """The 32x32 colour images of CIFAR-10 (Krizhevsky 2009) by torchvision, downloaded if they are not there."""
    try:
        dataset = _datasets().CIFAR10(root, train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"CIFAR-10 is not below {root} and could not be downloaded ({error})",
            f"Put cifar-10-python.tar.gz into {root}",
        ) from error
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))
    return ImageSet(torch.from_numpy(images), torch.tensor(dataset.targets))


def read_celeba(
    root: Path, split: str, image_size: int, channels: int, limit: int | None, *, cache: Path | bool = True
) -> ImageSet:
    """CelebA (Liu 2015) by torchvision: the aligned faces, centre crop of 178 pixels, resized."""
    try:
        dataset = _datasets().CelebA(root, split=split)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"CelebA is not complete below {root}/celeba ({error})",
            "Fetch it from its authors' page: img_align_celeba.zip (unpacked) and the five text files beside it",
        ) from error
    folder = root / "celeba" / "img_align_celeba"
    files = [folder / dataset.filename[i] for i in spread(len(dataset.filename), limit)]
    form = Form(image_size, channels, _CELEBA_CROP)
    source = ("celeba", str(folder.resolve()), f"{split} {form} {limit}")
    return cached(cache, source, files, lambda: decode_files(root, files, form))


def read_folder(
    folder: Path,
    image_size: int | None,
    channels: int | None,
    limit: int | None,
    *,
    labels: Labels = None,
    cache: Path | bool = True,
) -> ImageSet:
    """All image files at and below ``folder``, of any mode, cropped to squares and resized; hidden ones are left out.

    Without ``image_size`` all must be squares of one size; without ``channels`` one colour image makes all colour.
    ``labels``: see :func:`fedddpm.data.open_images`.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(path.relative_to(folder)) and path.is_file()
    )
    if not files:
        raise DataError(
            f"there are no images in {folder}", f"Files must end in one of {' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    names = None if labels is None else _class_names(folder, files, labels)
    chosen = [files[i] for i in spread(len(files), limit)]
    numbers = None if names is None else [names.index(path.relative_to(folder).parts[0]) for path in chosen]
    source = ("folder", str(folder.resolve()), f"{image_size} {channels} {limit}", *(names or ()))
    deciding = files if image_size is None or channels is None else chosen  # all headers decide the form

    def decode() -> ImageSet:
        return decode_files(folder, chosen, common_form(folder, files, image_size, channels), numbers)

    return cached(cache, source, deciding, decode)


def _is_hidden(path: Path) -> bool:
    """Whether a file or a folder above it is no image of the user's: .cache/x.png, ._x.png of a Mac."""
    return any(part.startswith(".") for part in path.parts)


def _class_names(folder: Path, files: Sequence[Path], labels: str | Sequence[str]) -> list[str]:
    """The sub-folders that are classes, in the order of their labels."""
    present = sorted({path.relative_to(folder).parts[0] for path in files if path.parent != folder})
    names = present if labels == "folders" else labels.split(",") if isinstance(labels, str) else list(labels)
    advice = "Put every image into the folder of its class, and name all classes, in the order all institutions use"
    if len(set(names)) != len(names):
        raise DataError(f"the classes {', '.join(names[:10])} name one twice", advice)
    stray = [path.name for path in files if path.parent == folder] + [name for name in present if name not in names]
    if stray:
        raise DataError(
            f"{', '.join(stray[:3])} in {folder} belongs to none of the classes {', '.join(names[:10])}", advice
        )
    return names


def read_npz(path: Path, split: str) -> ImageSet:
    """An .npz with ``images`` or, as MedMNIST has them, ``train_images`` (and ``labels`` / ``train_labels``).

    Images are [N, H, W], [N, H, W, C] or [N, C, H, W], uint8 or whole numbers that use the range of their type.
    Nothing is unpickled.
    """
    try:
        with path.open("rb") as file, _load_npz(file) as arrays:
            names = [name for name in (f"{split}_images", "images") if name in arrays]
            if not names:
                raise DataError(
                    f"{path} has no array {split}_images or images (it has {', '.join(arrays) or 'none'})",
                    "Save it with numpy.savez(path, images=..., labels=...)",
                )
            images = arrays[names[0]]
            label_name = names[0].replace("images", "labels")
            labels = arrays.get(label_name)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read ({_npz_trouble(error)})", "Save plain arrays with numpy.savez"
        ) from error
    _require_images(path, images)
    images, scaling = as_bytes(path, images)
    return ImageSet(torch.from_numpy(_channels_first(images)), _class_labels(labels, len(images)), scaling=scaling)


def _load_npz(file: IO[bytes]) -> NpzFile:
    loaded = np.load(file, allow_pickle=False)
    if not isinstance(loaded, NpzFile):
        raise ValueError("it holds one bare array, as .npy files do")
    return loaded


def _npz_trouble(error: Exception) -> str:
    """In own words where numpy would advise to unpickle, which may run a stranger's code."""
    if "pickle" not in str(error):
        return str(error)
    return "it holds Python objects" if "Object arrays" in str(error) else "it is no .npz file, or is damaged"


def _require_images(path: Path, images: npt.NDArray[np.generic]) -> None:
    if images.dtype.kind not in "buif" or images.ndim not in (3, 4):
        raise DataError(
            f"the images in {path} are {images.dtype} {list(images.shape)}",
            "Save them as uint8 [N, H, W] or [N, H, W, C] with values from 0 to 255",
        )


def _channels_first(images: Bytes) -> Bytes:
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images, dtype=np.uint8)


def _class_labels(labels: npt.NDArray[np.generic] | None, count: int) -> torch.Tensor | None:
    """Labels [N] or [N, 1] of whole numbers; anything else (several findings an image, say) is no class label."""
    if labels is None or labels.size != count or not np.issubdtype(labels.dtype, np.integer):
        return None
    return torch.from_numpy(labels.reshape(-1).astype(np.int64))
