"""How near drawn images are to real ones, for the demo: Frechet distances of a small classifier's features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedddpm.data import open_images
from fedddpm.evaluation.classifier import open_classifier
from fedddpm.evaluation.distances import Statistics, frechet
from fedddpm.evaluation.features import OnProgress

CLASSIFIER_STEPS = 600  # batches of 128 images: half a minute on one core


@dataclass(frozen=True)
class Distances:
    """Of several sets of drawn images from the same real ones."""

    count: int  # images on each side
    net: str  # what made the features
    real: float  # distance of as many other real images: nothing gets below it but by luck
    drawn: dict[str, float]


def distances(
    source: Path, cache: Path, drawn: Mapping[str, Tensor], progress: Callable[[], OnProgress] | None = None
) -> Distances:
    """FD of each set of images from the first test images, as many as are drawn; they all hold the same number."""
    train, test = (open_images(source, split=split, image_size=28, channels=1) for split in ("train", "test"))
    net = open_classifier(
        train, test, cache, steps=CLASSIFIER_STEPS, on_progress=progress() if progress is not None else None
    )
    (count,) = {len(images) for images in drawn.values()}
    real = Statistics.of(net.extract(test.images[:count]))

    def distance(images: Tensor) -> float:
        return frechet(Statistics.of(net.extract(images)), real)

    others = train.images[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:count]]
    return Distances(count, net.name, distance(others), {name: distance(images) for name, images in drawn.items()})
