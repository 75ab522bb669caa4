"""The scores of one set of images, as a record, and how they come about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from fedddpm.evaluation.distances import Statistics, frechet, kid, precision_recall
from fedddpm.evaluation.features import FeatureNet, Features, OnProgress
from fedddpm.evaluation.pixel_rescaling import Saving
from fedddpm.evaluation.reference import Reference


@dataclass(frozen=True)
class Scores:
    """How far ``n`` images are from the real test images, seen through one feature net.

    ``metric`` is "FID" only for the Inception features of Heusel 2017 (arXiv 1706.08500); a distance in the features
    of any other net is "FD", and the two cannot be compared.
    """

    metric: Literal["FID", "FD"]
    net: str
    n: int
    distance: float
    floor: float  # the same distance for n real training images: no generator can be asked to be below
    kid: float | None = None  # kernel distance (Binkowski 2018), mean over subsets
    kid_std: float | None = None
    precision: float | None = None  # Kynkaanniemi 2019
    recall: float | None = None
    saving: str = "rescaled"  # how images became bytes; "clipped" loses everything below mid-grey

    @property
    def label(self) -> str:
        """The metric's name with its sample count, as it must be printed."""
        return f"{self.metric} (N = {self.n})"


def score(
    net: FeatureNet,
    reference: Reference,
    images: Tensor,
    *,
    companions: bool = True,
    seed: int = 0,
    saving: Saving = "rescaled",
    on_progress: OnProgress | None = None,
) -> Scores:
    """Score uint8 ``images`` [N, C, H, W], which were saved as ``saving`` says, against ``reference``.

    ``companions`` adds KID, precision and recall. The last two are taken from as many real images as scored ones, both
    chosen at random where one side has more.

    Raises:
        DataError: too few images, more than there are real training images for the floor, or of another size.
        ConfigError: the extra is not installed.
    """
    reference.floor(len(images))  # refuses what has none before minutes are spent
    features = net.extract(images, on_progress)
    return score_features(net, reference, features, companions=companions, seed=seed, saving=saving)


def score_features(
    net: FeatureNet,
    reference: Reference,
    features: Features,
    *,
    companions: bool = True,
    seed: int = 0,
    saving: Saving = "rescaled",
) -> Scores:
    """As :func:`score`, of images whose ``features`` [N, width] by ``net`` are at hand.

    Raises:
        DataError: too few images, or more than there are real training images for the floor.
        ConfigError: the extra is not installed.
    """
    floor, count = reference.floor(len(features)), len(features)
    distance = frechet(Statistics.of(features), reference.statistics)
    metric: Literal["FID", "FD"] = "FID" if net.is_inception else "FD"
    plain = Scores(metric, net.name, count, distance, floor, saving=saving)
    if not companions:
        return plain
    kid_mean, kid_std, precision, recall = _companions(reference.features, features, seed)
    return replace(plain, kid=kid_mean, kid_std=kid_std, precision=precision, recall=recall)


def _companions(real: Features, fake: Features, seed: int) -> tuple[float, float, float, float]:
    rng = np.random.default_rng(seed)
    equal = min(len(real), len(fake))
    pair = (side if len(side) == equal else side[rng.choice(len(side), equal, replace=False)] for side in (real, fake))
    return (*kid(real, fake, seed), *precision_recall(*pair))
