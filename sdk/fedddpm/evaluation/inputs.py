"""The images of ``fedddpm evaluate``: real ones in two parts, and those that are scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedddpm.data.image_set import ImageSet, split_holdout, to_floats
from fedddpm.data.opening import open_images


@dataclass(frozen=True)
class RealImages:
    """The real images: what is compared with, what the floors are made of, and what to know about them."""

    train: ImageSet
    test: ImageSet
    note: str


def open_real_images(source: str, root: Path, image_size: int | None, channels: int | None) -> RealImages:
    """The two splits of a set; a set without splits is parted into halves, because a floor needs images of its own.

    Raises:
        DataError: see :func:`fedddpm.data.open_images`.
    """
    train, test = (
        open_images(source, split=split, root=root, image_size=image_size, channels=channels)
        for split in ("train", "test")
    )
    if not torch.equal(train.images, test.images):
        return RealImages(train, test, "")
    train, test = split_holdout(test, 0.5, seed=0)
    note = f"{source} has one set of images only: {len(test)} of them are the reference, the others serve the floor"
    return RealImages(train, test, note)


def read_scored(path: Path, real: ImageSet) -> Tensor:
    """The images of a folder or file in the size of ``real``, as a network would have given them: floats in [-1, 1].

    Raises:
        DataError: see :func:`fedddpm.data.open_images`.
    """
    found = open_images(path, image_size=real.image_size, channels=real.channels)
    return to_floats(found.images, torch.device("cpu"))
