"""The real images that others are compared with: features, statistics and floors, kept on disk.

The floor at N is the distance of N real training images to the real test images. A Frechet distance falls with the
number of images, so a number without its floor says little (Chong & Forsyth 2020, arXiv 1911.07023).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedddpm.data.image_set import ImageSet
from fedddpm.errors import DataError
from fedddpm.evaluation.cache import cache_file, cached, locked, read_cache
from fedddpm.evaluation.distances import Statistics, frechet
from fedddpm.evaluation.features import FeatureNet, Features, OnProgress, digest_tensors
from fedddpm.files.atomic import save_tensors

_BLOCK = 500  # images between two looks at the clock
_SAVE_EVERY_S = 30.0


class Reference:
    """Statistics and features of real test images, and the floors; made by :func:`open_reference`."""

    def __init__(self, net: FeatureNet, train: ImageSet, test: ImageSet, cache: Path, seed: int) -> None:
        self.net = net
        self._cache = cache
        self._test = _Bank(net, test.images, cache)
        order = np.random.default_rng(seed).permutation(len(train))  # no split of the set decides the floor
        self._train = _Bank(net, train.images, cache, torch.from_numpy(order))
        self._floors: dict[int, float] = {}
        self.features: Features = np.empty((0, net.width), dtype=np.float32)  # [test images, width]
        self.statistics: Statistics

    def __len__(self) -> int:
        return len(self._test.images)

    def load(self, on_progress: OnProgress | None = None) -> None:
        """Read or make what the test images give."""
        self.features = self._test.first(len(self), on_progress)

        def make() -> Mapping[str, Tensor]:
            found = Statistics.of(self.features)
            return {"mean": torch.from_numpy(found.mean), "covariance": torch.from_numpy(found.covariance)}

        found = cached(self._cache, "statistics", self._test.origin, make)
        self.statistics = Statistics(found["mean"].numpy(), found["covariance"].numpy(), len(self))

    def floor(self, n: int, on_progress: OnProgress | None = None) -> float:
        """Frechet distance of ``n`` real training images, drawn once by the seed, to the test images.

        Raises:
            DataError: there are not so many training images, or fewer than two are asked for.
        """
        if not 2 <= n <= len(self._train.images):
            raise DataError(
                f"the floor at N = {n} needs as many real training images, and there are {len(self._train.images)}",
                "Score a number of images between 2 and that",
            )
        if n not in self._floors:

            def make() -> Mapping[str, Tensor]:
                real = Statistics.of(self._train.first(n, on_progress))
                return {"floor": torch.tensor(frechet(real, self.statistics), dtype=torch.float64)}

            origin = self._train.origin | {"n": str(n), "test": self._test.origin["images"]}
            self._floors[n] = float(cached(self._cache, "floor", origin, make)["floor"])
        return self._floors[n]


class _Bank:
    """Features of images in one order, made as far as they were asked for, and kept on disk."""

    def __init__(self, net: FeatureNet, images: Tensor, cache: Path, order: Tensor | None = None) -> None:
        self.images = images
        self._net, self._order = net, order
        tensors = {"images": images} | ({} if order is None else {"order": order})
        self.origin = {"net": net.digest, "images": digest_tensors(tensors)}
        self._path = cache_file(cache, "features", self.origin)

    def first(self, n: int, on_progress: OnProgress | None) -> Features:
        """Features [n, width] of the first ``n`` images; a process killed meanwhile loses half a minute."""
        with locked(self._path):
            rows = self._read()
            saved = time.monotonic()
            while len(rows) < n:
                block = self._block(slice(len(rows), min(n, len(rows) + _BLOCK)))
                rows = np.concatenate([rows, self._net.extract(block)])
                if len(rows) == n or time.monotonic() - saved > _SAVE_EVERY_S:
                    save_tensors(self._path, {"features": torch.from_numpy(rows)}, self.origin)
                    saved = time.monotonic()
                if on_progress is not None:
                    on_progress(len(rows), n)
        return rows[:n]

    def _block(self, part: slice) -> Tensor:
        return self.images[part] if self._order is None else self.images[self._order[part]]

    def _read(self) -> Features:
        found = (read_cache(self._path, self.origin) or {}).get("features")
        if found is None or found.dtype != torch.float32 or found.shape[1:] != (self._net.width,):
            return np.empty((0, self._net.width), dtype=np.float32)
        rows: Features = found.numpy()
        return rows


def open_reference(
    net: FeatureNet,
    train: ImageSet,
    test: ImageSet,
    cache: Path,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Reference:
    """The real images of ``test`` as ``net`` sees them; those of ``train`` serve the floors.

    ``on_progress`` hears (images done, images) while features are made: minutes with Inception, the first time.

    Raises:
        CheckpointError: the cache cannot be written.
        DataError: fewer than two test images.
        ConfigError: the extra is not installed.
    """
    reference = Reference(net, train, test, cache, seed)
    reference.load(on_progress)
    return reference
