"""How much of the true images a reconstruction shows, and what an adversary without any information would reach.

Images of one kind resemble each other: what counts is how an image differs from their mean, which anybody may know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fedddpm.data.image_set import ImageSet, to_floats

_GUESSES = 50  # sets of unrelated images behind a baseline

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """Pearson correlations over the pixels of an image, without the mean image of its kind, from -1 to 1."""

    by_name: float | None  # mean over the images, each with the one that is said to be of it; None: nothing is said
    worst_by_name: float | None
    best_match: float  # mean over the images, each with the reconstruction that is most like it


def score(found: Tensor, truth: Tensor, middle: Tensor, *, named: bool = True) -> Score:
    """Score reconstructions [N, C, H, W] of N true images; ``named``: they are said to be in the same order.

    ``middle`` [C, H, W] is the mean image of their kind.
    """
    table = correlations(found - middle, truth - middle)
    best, own = float(table.max(axis=0).mean()), table.diagonal()
    return Score(float(own.mean()), float(own.min()), best) if named else Score(None, None, best)


def chance(truth: Tensor, others: Tensor, seed: int = 0) -> Score:
    """The mean score of as many images drawn from ``others``, which show the same kind of thing."""
    generator = np.random.default_rng(seed)
    draws = [others[generator.permutation(len(others))[: len(truth)]] for _ in range(_GUESSES)]
    scores = [score(draw, truth, others.mean(dim=0)) for draw in draws]
    return Score(*(float(np.mean([getattr(one, field) for one in scores])) for field in Score.__annotations__))


def correlations(found: Tensor, truth: Tensor) -> Numbers:
    """[found, truth]; 0 where an image is all of one colour."""
    a, b = (_standard(images) for images in (found, truth))
    table: Numbers = a @ b.T
    return table


def _standard(images: Tensor) -> Numbers:
    rows = images.detach().flatten(1).double().numpy()
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)  # type: ignore[no-any-return]


def as_floats(data: ImageSet) -> Tensor:
    """The images as training sees them: float32 in [-1, 1]."""
    return to_floats(data.images, torch.device("cpu")).contiguous()


def downscaled(data: ImageSet, size: int) -> ImageSet:
    """Every pixel the mean of those that lie under it."""
    small = F.adaptive_avg_pool2d(data.images.float(), size)
    return ImageSet(small.round().to(torch.uint8))


def shares_of(data: ImageSet, members: int, images: int, seed: int) -> tuple[list[ImageSet], ImageSet]:
    """``images`` each for ``members`` institutions, at random, and the images that nobody has."""
    order = np.random.default_rng(seed).permutation(len(data))
    held = members * images
    return [data.subset(part) for part in order[:held].reshape(members, images)], data.subset(order[held:])
