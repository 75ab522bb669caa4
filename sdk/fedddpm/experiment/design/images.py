"""The images of a study: opened once in every process, shared out by seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from fedddpm.data.image_set import ImageSet, split_holdout, spread
from fedddpm.data.opening import Split, open_images
from fedddpm.data.splits import SMALLEST_SHARE, Indices, iid, label_skew, quantity_skew
from fedddpm.errors import DataError
from fedddpm.experiment.design.settings import StudySettings

_TEST_SHARE = 0.1  # of a set that comes without test images


@dataclass(frozen=True)
class ImageSource:
    """Where a study's images come from."""

    data: str
    root: str
    image_size: int | None
    channels: int | None
    labels: str | None
    subset: int | None
    test_images: int | None

    @classmethod
    def of(cls, settings: StudySettings) -> ImageSource:
        """The source that ``settings`` name."""
        s = settings
        return cls(s.data, str(s.data_root), s.image_size, s.channels, s.labels, s.subset, s.test_images)


_provided: dict[ImageSource, tuple[ImageSet, ImageSet]] = {}


def provide(source: ImageSource, train: ImageSet, test: ImageSet) -> None:
    """Let :func:`open_source` give these images for ``source``, in a process that has them from elsewhere."""
    _provided.clear()
    _provided[source] = train, test


def open_source(source: ImageSource) -> tuple[ImageSet, ImageSet]:
    """Images for training and for testing; a set without test images gives a tenth of its own for them.

    Raises:
        DataError: the images cannot be used.
    """
    return _provided.get(source) or _opened(source)


@lru_cache(maxsize=2)
def _opened(source: ImageSource) -> tuple[ImageSet, ImageSet]:
    train, test = (_open(source, split) for split in ("train", "test"))
    if train.images.shape == test.images.shape and torch.equal(train.images, test.images):
        train, test = split_holdout(train, _TEST_SHARE, 0)
    return (
        train.subset(spread(len(train), source.subset)),
        test.subset(spread(len(test), source.test_images)),
    )


def _open(source: ImageSource, split: Split) -> ImageSet:
    return open_images(
        source.data,
        split=split,
        image_size=source.image_size,
        channels=source.channels,
        root=source.root,
        labels=source.labels,
    )


def share_out(train: ImageSet, split: str, institutions: int, seed: int, concentration: float) -> list[Indices]:
    """Indices of the training images for each institution.

    Raises:
        DataError: too few images, or a label skew of images without labels.
    """
    if len(train) < institutions * SMALLEST_SHARE:
        raise DataError(
            f"{len(train)} images do not go round {institutions} institutions with at least {SMALLEST_SHARE} each",
            "Use fewer institutions or more images",
        )
    labels = np.zeros(len(train), np.int64) if train.labels is None else train.labels.numpy()
    if split == "label-skew":
        if train.labels is None:
            raise DataError("a label skew needs labels, and these images have none", "Use iid or quantity-skew")
        return label_skew(labels, institutions, seed, concentration)
    if split == "quantity-skew":
        return quantity_skew(labels, institutions, seed, concentration)
    return iid(labels, institutions, seed)


def class_counts(images: ImageSet, share: Indices) -> list[int]:
    """Images of each class in a share; empty where there are no labels."""
    if images.labels is None:
        return []
    labels = images.labels.numpy()
    return [int(count) for count in np.bincount(labels[share], minlength=int(labels.max()) + 1)]


def count_classes(images: ImageSet) -> int:
    """Number of label classes; DataError if there are no labels."""
    if images.labels is None:
        raise DataError(
            "class-conditional training needs labels, and these images have none",
            "Leave out conditional, or add labels",
        )
    return int(images.labels.max()) + 1
