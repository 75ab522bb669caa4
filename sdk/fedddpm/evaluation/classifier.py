"""A small classifier of the data set itself, whose last inner layer describes an image in a tenth of a millisecond.

Distances of its features (FD) rank networks round by round where Inception would take minutes. They are no FID and
compare only with distances of the very same classifier, which is why its name holds a digest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedddpm.compute.device import pick_device
from fedddpm.data.image_set import ImageSet, to_floats
from fedddpm.errors import DataError
from fedddpm.evaluation.cache import cached
from fedddpm.evaluation.features import Features, OnProgress, digest_tensors, extract_batches

DEFAULT_STEPS = 2500
_CHANNELS = (16, 48, 64, 64)
_BATCH = 128
_LEARNING_RATE = 5e-3  # at the peak of one cycle (Smith 2018, arXiv 1708.07120)
_EXTRACT_BATCH = 500
_RECIPE = 1  # counts up when a change of this file changes the trained net
_ACCURACY = "accuracy"  # name of a tensor beside the weights; no weight is called so

_LOG = logging.getLogger(__name__)


class Classifier(nn.Module):
    """Four convolutions, a mean over the plane (the features) and one linear layer: [B, C, H, W] -> [B, classes]."""

    def __init__(self, image_size: int, channels: int, classes: int) -> None:
        super().__init__()
        stride = max(1, round(image_size / 28))  # larger images cost what small ones cost
        first, *others = _CHANNELS
        layers = _block(channels, first, kernel=2 * stride + 1, stride=stride)
        for before, after, step in zip(_CHANNELS, others, (2, 2, 1), strict=False):
            layers += _block(before, after, kernel=3, stride=step)
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(_CHANNELS[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images in [-1, 1]."""
        logits: Tensor = self.head(self.features(x))
        return logits


def _block(before: int, after: int, kernel: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    ]


@dataclass(frozen=True, eq=False)
class ClassifierNet:
    """A trained :class:`Classifier` as a feature net."""

    network: Classifier
    device: torch.device
    channels: int
    image_size: int
    name: str
    source: str
    digest: str
    accuracy: float  # share of the test images that it names right
    width: int = _CHANNELS[-1]
    is_inception: bool = False

    def extract(self, images: Tensor, on_progress: OnProgress | None = None) -> Features:
        """Features [N, 64] of uint8 ``images`` [N, C, H, W].

        Raises:
            DataError: the images are not of the kind that the classifier was trained on.
        """
        if tuple(images.shape[1:]) != (self.channels, self.image_size, self.image_size):
            raise DataError(
                f"{self.name} knows images [{self.channels}, {self.image_size}, {self.image_size}], "
                f"not {list(images.shape[1:])}",
                "Score images of the reference's size and channels",
            )
        return extract_batches(
            lambda batch: self.network.features(to_floats(batch, self.device)), images, _EXTRACT_BATCH, on_progress
        )


def open_classifier(
    train: ImageSet,
    test: ImageSet,
    cache: Path,
    *,
    steps: int = DEFAULT_STEPS,
    seed: int = 0,
    device: str = "cpu",
    on_progress: OnProgress | None = None,
) -> ClassifierNet:
    """The classifier of ``train``: from ``cache`` if it is there, else trained in ``steps`` batches of 128.

    The default takes about a minute on two cores. ``on_progress`` hears (steps done, steps) while it trains.

    Raises:
        DataError: a set has no labels, there is one class only, or the two sets do not fit each other.
        CheckpointError: the cache cannot be written.
    """
    classes = _count_classes(train, test)
    where = pick_device(device)
    origin = {
        "kind": "classifier",
        "recipe": f"{_RECIPE} {_CHANNELS} batch {_BATCH} rate {_LEARNING_RATE} steps {steps} seed {seed}",
        "train": _digest(train),
        "test": _digest(test),
    }
    network = _new(train, classes, seed)

    def make() -> Mapping[str, Tensor]:
        started = time.monotonic()
        trained = _train(train, classes, steps, seed, where, on_progress)
        accuracy = _accuracy(trained, test, where)
        _LOG.info(f"classifier trained in {time.monotonic() - started:.0f} s, {accuracy:.1%} right on the test images")
        return {**trained.state_dict(), _ACCURACY: torch.tensor(accuracy, dtype=torch.float64)}

    tensors = dict(cached(cache, "classifier", origin, make))
    accuracy = float(tensors.pop(_ACCURACY))
    network.load_state_dict(tensors)
    digest = digest_tensors(network.state_dict())
    size = sum(p.numel() for p in network.parameters())
    return ClassifierNet(
        network=network.to(where, memory_format=torch.channels_last).eval(),  # type: ignore[call-overload]
        device=where,
        channels=train.channels,
        image_size=train.image_size,
        name=f"classifier-{steps}-{digest[:8]}",
        source=(
            f"a classifier of {size:,} parameters trained for {steps} steps on the {len(train):,} training images "
            f"(names {accuracy:.1%} of the {len(test):,} test images right); distances of its features are FD, not FID"
        ),
        digest=digest,
        accuracy=accuracy,
    )


def _count_classes(train: ImageSet, test: ImageSet) -> int:
    if train.labels is None or test.labels is None:
        raise DataError(
            "the classifier learns from labels, and these images have none", "Use a labelled set, or --net inception"
        )
    if (train.channels, train.image_size) != (test.channels, test.image_size):
        raise DataError("training and test images differ in size or channels", "Use two splits of one set")
    found = torch.unique(train.labels)  # sorted
    if len(found) < 2 or int(found[0]) < 0 or not bool(torch.isin(test.labels, found).all()):
        raise DataError(
            f"a classifier cannot be made of the labels {found.tolist()[:20]}",
            "It needs two classes or more, from 0 on, and each of the test's classes among the training's",
        )
    return int(found[-1]) + 1


def _new(data: ImageSet, classes: int, seed: int) -> Classifier:
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay what they were
        torch.manual_seed(seed)
        return Classifier(data.image_size, data.channels, classes)


def _train(
    data: ImageSet, classes: int, steps: int, seed: int, device: torch.device, on_progress: OnProgress | None
) -> Classifier:
    network = _new(data, classes, seed)
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=max(2, steps))
    for step, (images, labels) in zip(range(steps), _labelled_batches(data, seed, device), strict=False):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if on_progress is not None:
            on_progress(step + 1, steps)
    return network.eval()


def _labelled_batches(data: ImageSet, seed: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch of (images in [-1, 1], labels), in an order that follows from the seed."""
    if data.labels is None:
        return
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data), generator=generator)
        for first in range(0, len(data), _BATCH):
            rows = order[first : first + _BATCH]
            if len(rows) > 1 or len(data) == 1:  # batch normalisation has no variance of one image
                yield to_floats(data.images[rows], device), data.labels[rows].to(device)


@torch.inference_mode()
def _accuracy(network: Classifier, test: ImageSet, device: torch.device) -> float:
    if test.labels is None:
        return 0.0
    guesses = [network(to_floats(part, device)).argmax(1).cpu() for part in torch.split(test.images, _EXTRACT_BATCH)]
    return float((torch.cat(guesses) == test.labels).double().mean())


def _digest(data: ImageSet) -> str:
    return digest_tensors({"images": data.images} | ({} if data.labels is None else {"labels": data.labels}))
